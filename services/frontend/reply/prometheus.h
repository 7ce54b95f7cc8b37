/* Prometheus text format 0.0.4 from rows of several statistics pages. A metric that several services have is one family
 * with a `service` label, rows that differ in their own labels (stats.h) are one, too; every sample names the model.
 * Counters end in _total, all times are in seconds, whatever unit the row is kept in. */
#ifndef QN_FRONTEND_REPLY_PROMETHEUS_H
#define QN_FRONTEND_REPLY_PROMETHEUS_H

#include "common/watch/stats.h"
#include "services/frontend/reply/reply_buffer.h"

#define PROMETHEUS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

typedef struct prometheus prometheus_t;

/* `model_name` is copied. Returns owned. */
prometheus_t *prometheus_create(const char *model_name);
/* Copies the row. A row whose name is taken by a family of another kind is left out. */
void prometheus_add(prometheus_t *page, const char *service, const qn_stat_row_t *row);
/* Families in order of first appearance: HELP, TYPE, samples. */
void prometheus_write(const prometheus_t *page, reply_buffer_t *out);
/* Accepts NULL. */
void prometheus_destroy(prometheus_t **page);

#endif
