/* What is this?      The measured half of a scheduled batch's answer.
 * State owned:       none.
 * Must never:        call simulated what was measured.
 * Read next:         research/batch_schedule.c, reply_sglang.c (the outputs). */
#include "services/frontend/reply/reply_batch.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

static int compare_numbers(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static void put_number(json_writer_t *writer, const char *name, double number)
{
    json_put_key(writer, name);
    json_put_number(writer, number);
}

/* From the batch's arrival to each request's last token. */
static void put_metrics(const exchange_t *exchange, json_writer_t *writer)
{
    uint32_t count = exchange->choice_count;
    double *latencies = calloc(count + 1, sizeof *latencies), mean = 0;
    uint64_t tokens = 0, last_ns = exchange->received_ns;
    QN_ASSERT(latencies != NULL);
    for (uint32_t i = 0; i < count; i++) {
        const choice_t *choice = &exchange->choices[i];
        uint64_t end_ns = choice->last_ns > exchange->received_ns ? choice->last_ns : exchange->received_ns;
        latencies[i] = (double)(end_ns - exchange->received_ns) / 1e6;
        mean += latencies[i] / count;
        tokens += choice->tokens.count;
        last_ns = end_ns > last_ns ? end_ns : last_ns;
    }
    qsort(latencies, count, sizeof *latencies, compare_numbers);
    double total_ms = (double)(last_ns - exchange->received_ns) / 1e6;
    uint32_t rank = (uint32_t)(0.99 * count + 0.999999);
    json_put_open(writer, '{');
    put_number(writer, "mean_latency_ms", mean);
    put_number(writer, "p99_latency_ms", latencies[rank > 0 ? rank - 1 : 0]);
    put_number(writer, "tokens_per_s", total_ms > 0 ? (double)tokens / (total_ms / 1e3) : 0);
    put_number(writer, "total_ms", total_ms);
    json_put_close(writer, '}');
    free(latencies);
}

void reply_batch_members(const exchange_t *exchange, json_writer_t *writer)
{
    const reply_buffer_t *members = &exchange->batch->members; /* "{" and members */
    json_put_raw(writer, members->data + 1, members->bytes - 1);
    json_put_key(writer, "order");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < exchange->batch->count; i++)
        json_put_unsigned(writer, exchange->batch->order[i]);
    json_put_close(writer, ']');
    json_put_key(writer, "metrics");
    put_metrics(exchange, writer);
    json_put_member_bool(writer, "dry_run", false);
}
