/* Method calls straight to a service, over its socket: no frontend takes part. */
#ifndef QN_TOOLS_CLIENT_DIRECT_CALL_H
#define QN_TOOLS_CLIENT_DIRECT_CALL_H

#include "common/config/config.h"
#include "common/wire/method.h"

/* What the service said: the reply, or why not. */
typedef struct {
    void *reply;     /* the generated struct, in the arena; NULL: it refused */
    uint16_t status; /* of a refusal, an HTTP status */
    qn_text_t param, text;
} direct_reply_t;

typedef struct direct_caller direct_caller_t;

/* Greets the service where `values` say that it is. Failure: QN_ERR_NOT_FOUND (nobody is there), QN_ERR_PEER (it does not
 * speak with this build). Returns owned. */
qn_err_t direct_open(const qn_config_values_t *values, qn_service_t service, direct_caller_t **ret_caller);
/* Says Bye; accepts NULL. */
void direct_close(direct_caller_t **caller);
/* Sends `request` (the generated struct) and waits for the answer, which lives in the arena. Failure: QN_ERR_TIMEOUT,
 * QN_ERR_INVALID (the request breaks its schema). */
qn_err_t direct_call(direct_caller_t *caller, const qn_method_t *method, void *request, qn_arena_t *arena,
                     direct_reply_t *ret_reply);

#endif
