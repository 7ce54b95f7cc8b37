/* What the answer of a scheduled batch has besides its outputs: the plan as it was made, and what was measured. */
#ifndef QN_FRONTEND_REPLY_REPLY_BATCH_H
#define QN_FRONTEND_REPLY_REPLY_BATCH_H

#include "services/frontend/reply/json_writer.h"
#include "services/frontend/request/request_table.h"

/* Members of the object that `writer` has open: those of exchange->batch, and "metrics". */
void reply_batch_members(const exchange_t *exchange, json_writer_t *writer);

#endif
