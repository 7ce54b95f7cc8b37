/* The tokenizer's methods about texts, which may take longer than a turn of the loop. */
#ifndef QN_TOKENIZER_METHODS_H
#define QN_TOKENIZER_METHODS_H

#include "services/tokenizer/service.h"

/* The job of a call is done: sends its reply. */
void tokenizer_answer_call(tokenizer_service_t *service, const text_job_t *job);

#endif
