/* A row of forms.def as the routes and the documentation see it. */
#ifndef QN_FRONTEND_RESEARCH_FORM_ROW_H
#define QN_FRONTEND_RESEARCH_FORM_ROW_H

#include "qn_methods.h"

struct form;

typedef struct {
    const char *path, *name, *doc;
    qn_method_id_t method;
    void (*run)(struct form *form); /* NULL: the method as it is */
    /* JSON of one with a function of its own: schemas of body and answer, a body, {name: schema} of the query; NULL: not
     * said. */
    const char *request, *reply, *example, *query;
} form_row_t;

#endif
