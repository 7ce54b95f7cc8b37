/* Who may do what: the listener that a request came to, where its client is, and its API key. */
#ifndef QN_FRONTEND_ACCESS_H
#define QN_FRONTEND_ACCESS_H

#include "services/frontend/frontend.h"

/* Opens frontend.api_keys_file, if there is one, and hears SIGHUP for it. */
qn_err_t access_open(frontend_t *frontend);
void access_close(frontend_t *frontend);
/* Reads the keys anew when a SIGHUP came; a bad file leaves the old ones in force. Every turn. */
void access_turn(frontend_t *frontend);

/* Whether the request may have what needs `needed`. False: *ret_error says why not:
 *   404  an admin's route, and administrators have a listener of their own
 *   401  no key, or none of ours
 *   403  a key of too little scope; or no keys are configured, and the client is on another host */
bool access_allows(const frontend_t *frontend, const http_request_t *request, access_t needed, http_error_t *ret_error);
/* Answers the error, with what HTTP wants beside it. */
void access_refuse(frontend_t *frontend, http_request_t *request, route_t route, const http_error_t *error);

#endif
