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
#ifndef QN_COMMON_CAPTURE_CAPTURE_FILE_H
#define QN_COMMON_CAPTURE_CAPTURE_FILE_H

#include <stdint.h>

#include "common/err.h"
#include "common/capture/capture_message.h"

typedef struct qn_capture qn_capture_t;

typedef enum {
    QN_CAPTURE_MESSAGE, /* one was read */
    QN_CAPTURE_END,
    QN_CAPTURE_TORN, /* the rest of the file is a torn record; qn_err_text says where */
} qn_capture_outcome_t;

/* Creates or empties the file; "-" is standard output. Failure: QN_ERR_IO. Returns owned. */
qn_err_t qn_capture_create(const char *path, uint64_t clock_ns, qn_capture_t **ret_capture);
/* Appends; what was appended is in the file when qn_capture_flush or _close has returned QN_OK. */
qn_err_t qn_capture_write(qn_capture_t *capture, const qn_capture_message_t *message);
qn_err_t qn_capture_flush(qn_capture_t *capture);

/* Opens for reading; "-" is standard input. QN_ERR_NOT_FOUND, QN_ERR_IO, QN_ERR_INVALID (no capture file). Returns owned. */
qn_err_t qn_capture_open(const char *path, qn_capture_t **ret_capture);
uint64_t qn_capture_clock_ns(const qn_capture_t *capture);
/* Reads one message (owned by the caller: free). */
qn_capture_outcome_t qn_capture_read(qn_capture_t *capture, qn_capture_message_t **ret_message);

/* Frees and nulls; accepts NULL. QN_ERR_IO: something written did not reach the file. */
qn_err_t qn_capture_close(qn_capture_t **capture);

#endif
