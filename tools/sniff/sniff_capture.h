/* Capture files of the sniffer: what `quintet sniff -w` writes and -r reads.
 *
 * All numbers little-endian. The file begins with 32 bytes:
 *   magic[8]         "QNTCAP\r\n"
 *   version  u32     2
 *   reserved u32     0
 *   clock_ns u64     CLOCK_REALTIME minus CLOCK_MONOTONIC when it was begun: times of day are time_ns + clock_ns
 *   begun_ns u64     CLOCK_MONOTONIC when it was begun
 * Then records, one after the other, in order of time:
 *   bytes    u32     length of the payload: 72 + the frame's
 *   crc      u32     CRC-32C (Castagnoli) of the payload
 *   payload: missed u64, then a qn_tap_header_t (64 bytes, common/watch/tap.h), then the frame as it was on the wire
 * A writer that dies leaves a torn tail: a record that is too short or has another CRC. Readers stop there. */
#ifndef QN_TOOLS_SNIFF_SNIFF_CAPTURE_H
#define QN_TOOLS_SNIFF_SNIFF_CAPTURE_H

#include <stdint.h>

#include "common/err.h"
#include "tools/sniff/sniff_message.h"

typedef struct sniff_capture sniff_capture_t;

typedef enum {
    SNIFF_CAPTURE_MESSAGE, /* one was read */
    SNIFF_CAPTURE_END,
    SNIFF_CAPTURE_TORN, /* the rest of the file is a torn record; qn_err_text says where */
} sniff_capture_outcome_t;

/* Creates or empties the file; "-" is standard output. Failure: QN_ERR_IO. Returns owned. */
qn_err_t sniff_capture_create(const char *path, uint64_t clock_ns, sniff_capture_t **ret_capture);
/* Appends; what was appended is in the file when sniff_capture_flush or _close has returned QN_OK. */
qn_err_t sniff_capture_write(sniff_capture_t *capture, const sniff_message_t *message);
qn_err_t sniff_capture_flush(sniff_capture_t *capture);

/* Opens for reading; "-" is standard input. QN_ERR_NOT_FOUND, QN_ERR_IO, QN_ERR_INVALID (no capture file). Returns owned. */
qn_err_t sniff_capture_open(const char *path, sniff_capture_t **ret_capture);
uint64_t sniff_capture_clock_ns(const sniff_capture_t *capture);
/* Reads one message (owned by the caller: free). */
sniff_capture_outcome_t sniff_capture_read(sniff_capture_t *capture, sniff_message_t **ret_message);

/* Frees and nulls; accepts NULL. QN_ERR_IO: something written did not reach the file. */
qn_err_t sniff_capture_close(sniff_capture_t **capture);

#endif
