/* What comes in: the handler table, and what a turn of the loop does besides. */
#ifndef QN_TOKENIZER_HANDLERS_H
#define QN_TOKENIZER_HANDLERS_H

#include "services/tokenizer/service.h"

extern const qn_handler_t tokenizer_handlers[];
extern const qn_method_row_t tokenizer_methods[]; /* methods.c */
/* methods_latency.c */
qn_call_outcome_t tokenizer_method_latency(void *state, qn_call_t *call, const void *message, void *ret_reply);

/* Takes the job as a whole, from the message on: it is done now or beside the loop, answered, and freed. */
void tokenizer_take_job(tokenizer_service_t *service, text_job_t *job);
/* Takes what the worker finished, until the turn's time for texts is used up; true: some is left. */
bool tokenizer_take_finished(tokenizer_service_t *service);
/* A frontend died: its requests are cancelled. */
void tokenizer_drop_frontend(tokenizer_service_t *service, qn_peer_t frontend);
/* A frontend is up: until it says ReplayComplete, requests of its are missing here. */
void tokenizer_meet_frontend(tokenizer_service_t *service);
/* A new scheduler life is up: it is told of every running request again, and of those that were cancelled meanwhile; it
 * drops those it knows. */
void tokenizer_submit_all(tokenizer_service_t *service, qn_peer_t scheduler);
/* Ends every stream and job without telling anybody (shutdown). */
void tokenizer_close_all(tokenizer_service_t *service);

#endif
