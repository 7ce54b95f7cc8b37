/* What is this?      The per-peer protocol state machine, without I/O.
 * State owned:       qn_peer_link_t, embedded by links.c.
 * Must never:        call a clock or a socket; free anything on suspicion.
 * Read next:         links.c */
#include "common/daemon/links/peer.h"

#include "common/assert.h"
#include "common/limits.h"

void qn_peer_link_greet(qn_peer_link_t *link, uint32_t own_window, uint32_t peer_window, uint64_t now_ns)
{
    *link = (qn_peer_link_t){
        .greeted = true,
        .window = own_window,
        .sent_limit = peer_window,
        .granted = own_window,
        .heard_ns = now_ns,
        .beat_ns = now_ns,
    };
}

uint64_t qn_peer_link_next_number(qn_peer_link_t *link)
{
    QN_ASSERT(link->greeted);
    return ++link->numbered;
}

bool qn_peer_link_may_send(const qn_peer_link_t *link, uint64_t number)
{
    return link->greeted && number <= link->sent_limit;
}

void qn_peer_link_granted(qn_peer_link_t *link, uint64_t limit)
{
    if (limit > link->sent_limit) link->sent_limit = limit;
}

qn_peer_data_t qn_peer_link_take(qn_peer_link_t *link, uint64_t number)
{
    if (number <= link->received) return QN_PEER_DATA_REPEATED;
    if (number > link->granted) return QN_PEER_DATA_OVERRUN;
    bool gap = number != link->received + 1;
    link->received = number;
    return gap ? QN_PEER_DATA_GAP : QN_PEER_DATA_NEXT;
}

uint64_t qn_peer_link_credit_due(const qn_peer_link_t *link)
{
    return link->granted - link->received <= link->window / 2 ? link->received + link->window : 0;
}

uint64_t qn_peer_link_grant(qn_peer_link_t *link)
{
    link->granted = link->received + link->window;
    return link->granted;
}

bool qn_peer_link_heard(qn_peer_link_t *link, uint64_t now_ns)
{
    bool was_suspect = link->suspect;
    link->heard_ns = now_ns;
    link->suspect = false;
    return was_suspect;
}

bool qn_peer_link_falls_silent(qn_peer_link_t *link, uint64_t now_ns)
{
    if (!link->greeted || link->suspect || now_ns - link->heard_ns < QN_LIVENESS * QN_HEARTBEAT_NS) return false;
    link->suspect = true;
    return true;
}

bool qn_peer_link_beat_due(const qn_peer_link_t *link, uint64_t now_ns)
{
    return link->greeted && now_ns - link->beat_ns >= QN_HEARTBEAT_NS;
}
