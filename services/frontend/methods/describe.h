/* What a service is and can do: GET /services/{service} and its examples. */
#ifndef QN_FRONTEND_METHODS_DESCRIBE_H
#define QN_FRONTEND_METHODS_DESCRIBE_H

#include "services/frontend/frontend.h"

/* The service's place among the five, its health, its messages and methods. */
void describe_service(const frontend_t *frontend, qn_service_t service, reply_buffer_t *out);
/* {"service", "examples": [{"method", "doc", "request", "reply"}]}: what can be posted as it stands. */
void describe_examples(const frontend_t *frontend, qn_service_t service, reply_buffer_t *out);
/* Asks the tokenizer what it can do; what is listed depends on it. */
void describe_meet_tokenizer(frontend_t *frontend);

#endif
