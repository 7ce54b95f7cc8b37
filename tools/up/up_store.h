/* Descriptors that `quintet up` keeps for a service, so that what they refer to (a ledger in a memfd, a region)
 * outlives the service's process. The rules are those of systemd's FileDescriptorStoreMax=, except that descriptors
 * are not polled for hang-up (systemd's FDPOLL=0). */
#ifndef QN_TOOLS_UP_UP_STORE_H
#define QN_TOOLS_UP_UP_STORE_H

#include <stdbool.h>
#include <stddef.h>

#define UP_STORE_FDS_MAX 64 /* per service: a ledger and a few regions */
#define UP_FD_NAME_MAX 64

typedef struct {
    struct {
        int fd;
        char name[UP_FD_NAME_MAX];
    } items[UP_STORE_FDS_MAX]; /* owned */
    size_t count;
} up_store_t;

typedef enum {
    UP_STORE_KEPT,
    UP_STORE_KNOWN, /* the same file is already kept; this descriptor was closed */
    UP_STORE_FULL,  /* closed */
} up_store_outcome_t;

/* Takes `fd`. An empty or unacceptable name becomes "stored", as with systemd. */
up_store_outcome_t up_store_add(up_store_t *store, int fd, const char *name);
/* Closes all descriptors of that name; returns how many. */
size_t up_store_remove(up_store_t *store, const char *name);
void up_store_clear(up_store_t *store);
/* "ledger:weights" for LISTEN_FDNAMES. `capacity` of UP_STORE_FDS_MAX * UP_FD_NAME_MAX is enough. */
void up_store_names(const up_store_t *store, char *buffer, size_t capacity);
/* May `name` stand in LISTEN_FDNAMES? Printable ASCII without ':'. */
bool up_store_name_is_valid(const char *name);

#endif
