/* What bodies the forms take that read their own (FORM_OWN): as JSON schema and example, for the documentation. */
#ifndef QN_FRONTEND_RESEARCH_FORM_BODIES_H
#define QN_FRONTEND_RESEARCH_FORM_BODIES_H

typedef struct {
    const char *schema, *example; /* JSON; NULL: it takes no body */
} form_body_t;

/* `name`: a row's of forms.def. NULL: its body is that of its method. */
const form_body_t *form_body_of(const char *name);

#endif
