/* One method call straight to a service, over its socket: no frontend takes part. */
#ifndef QN_TOOLS_CLIENT_DIRECT_CALL_H
#define QN_TOOLS_CLIENT_DIRECT_CALL_H

#include "common/config/config.h"
#include "common/wire/method.h"

/* What the service said: the reply, or why not. */
typedef struct {
    void *reply;     /* the generated struct, in the arena; NULL: it refused */
    uint16_t status; /* of a refusal, an HTTP status */
    qn_text_t param, text;
    uint32_t epoch; /* of the service */
    uint64_t sent_ns, began_ns, replied_ns, received_ns;
} direct_reply_t;

/* Greets the service where `values` say that it is, sends `request` (the generated struct) and waits for the answer.
 * Failure: QN_ERR_NOT_FOUND (nobody is there), QN_ERR_TIMEOUT, QN_ERR_PEER (it does not speak with this build),
 * QN_ERR_INVALID. *ret_reply lives in the arena. */
qn_err_t direct_call(const qn_config_values_t *values, const qn_method_t *method, void *request, qn_arena_t *arena,
                     direct_reply_t *ret_reply);

#endif
