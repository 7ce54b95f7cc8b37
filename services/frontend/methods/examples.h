/* Examples of methods that succeed on the model that is served: token ids inside its vocabulary, layers it has. */
#ifndef QN_FRONTEND_METHODS_EXAMPLES_H
#define QN_FRONTEND_METHODS_EXAMPLES_H

#include <jansson.h>

#include "common/wire/method.h"
#include "services/frontend/reply/reply_query.h"

/* The request of the method's example, fitted to the model. NULL: the model cannot do this (text without a tokenizer).
 * Returns owned. */
json_t *example_for(const qn_method_t *method, const served_model_t *model);

#endif
