/* What is this?      The launches of a step: the network over its runs and the sampler over their last rows; for steps
 *                    that only decode recorded as a graph per batch size and ticket, where the backend can.
 * State owned:       executor_t.graphs.
 * Must never:        put anything into a recorded step that differs between two steps of one size.
 * Read next:         forward.c, executor.c.
 *
 * A recorded step has fixed pointers and counts; what they point to in host memory is filled before it is launched, and
 * its first launch brings it to the device (step_input). So the number of runs is rounded up to one of a few sizes, and
 * the rest are runs of the null slot: a slot that is done, whose runs write no KV and sample nothing; to attention they
 * are runs of no tokens, which attend to nothing. */
#include "services/compute/executor/executor_internal.h"

#include "common/assert.h"

static const uint16_t SIZES[] = {1,  2,   4,   8,   12,  16,  24,  32,  40,  48,  64,  80,
                                 96, 112, 128, 160, 192, 224, 256, 384, 512, 768, 1024};
#define SIZE_COUNT (sizeof SIZES / sizeof SIZES[0])
_Static_assert(SIZE_COUNT <= EXECUTOR_GRAPHS_MAX && QN_SLOTS_MAX <= 1024, "a graph for every number of runs");

/* One of the step's arrays, for step_input to copy. */
#define ARRAY(field, count) {in->field, host->field, (uint32_t)((count) * sizeof *in->field)}

void executor_enter_step(executor_t *self, const forward_batch_t *batch, uint32_t runs, uint32_t samples)
{
    const scratch_t *s = &self->scratch;
    const scratch_in_t *in = &s->in, *host = self->host;
    executor_launch(self, QN_OP_STEP_INPUT,
                    &(qn_step_input_t){.tables = s->tables,
                                       .runs = host->runs,
                                       .run_count = runs,
                                       .ids = in->ids,
                                       .block_tokens = self->limits.block_tokens,
                                       .ret_ids = s->token_ids,
                                       .ret_positions = s->positions,
                                       .ret_lengths = s->lengths,
                                       .ret_kv_rows = s->kv_rows,
                                       .arrays = {ARRAY(decode_runs, batch->decode_runs),
                                                  ARRAY(prefill_runs, batch->prefill_runs), ARRAY(samples, samples),
                                                  ARRAY(sample_rows, samples)}});
}

void executor_run_network(executor_t *self, const forward_batch_t *batch, uint32_t runs, uint32_t samples,
                          step_times_t *times)
{
    executor_enter_step(self, batch, runs, samples);
    forward_layers(&self->forward, batch, times);
}

void executor_compute_samples(executor_t *self, ticket_t *ticket, uint32_t count, const uint32_t *rows_of_x,
                              step_times_t *times)
{
    size_t row_bytes = (size_t)self->forward.model->config.hidden * qn_scalar_bytes(self->limits.activations);
    const scratch_t *s = &self->scratch;
    uint32_t base = ticket->sample_count > count ? ticket->sample_count - count : 0; /* a recorded step is filled up */
    for (uint32_t done = 0, rows; done < count; done += rows) {
        rows = step_smaller(count - done, s->logit_rows);
        const char *x = (const char *)s->x + (rows_of_x ? 0 : done * row_bytes);
        forward_logits(&self->forward, x, rows_of_x ? rows_of_x + done : NULL, rows, times);
        self->logits_rows = rows;
        uint64_t begin_ns = forward_begin(&self->forward);
        executor_launch(self, QN_OP_SAMPLER,
                        &(qn_sampler_t){.tables = s->tables,
                                        .samples = s->in.samples + done,
                                        .sample_count = rows,
                                        .logits = s->logits,
                                        .scratch = s->sampler,
                                        .ret_results = ticket->out.results + base + done,
                                        .ret_top =
                                            ticket->out.sample_top + (size_t)(base + done) * QN_ALTERNATIVES_MAX});
        forward_lap(&self->forward, &begin_ns, &times->sample_ns);
    }
}

/* ---- recorded steps ---- */

bool executor_is_plain_decode(const executor_t *self, const step_plan_t *plan, const forward_batch_t *batch)
{
    if (!self->backend->capture_begin || batch->prefill_runs || !batch->decode_runs) return false;
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *run = &plan->runs[i];
        if (!run->sample || (self->owners[run->slot].prompt_logprobs && !run->from_slot)) return false;
    }
    return true;
}

/* Index of the smallest size that holds `runs`, and that size as far as the buffers hold it. */
static size_t choose_size(const executor_t *self, uint32_t runs, uint32_t *ret_size)
{
    size_t i = 0;
    while (SIZES[i] < runs)
        i++;
    *ret_size = step_smaller(SIZES[i], step_smaller(self->limits.max_sequences, self->limits.max_step_tokens));
    return i;
}

void executor_fill_up(executor_t *self, uint32_t runs)
{
    const scratch_in_t *host = self->host;
    uint32_t null_slot = self->limits.max_sequences, size;
    choose_size(self, runs, &size);
    for (uint32_t i = runs; i < size; i++) {
        host->runs[i] = host->decode_runs[i] = (qn_run_t){.slot = null_slot, .tokens = 1, .first = i, .from_slot = 1};
        host->decode_runs[i].tokens = 0;
        host->samples[i] = (qn_sample_t){.slot = null_slot};
        host->sample_rows[i] = i;
    }
}

static void launch_decode(executor_t *self, ticket_t *ticket, uint32_t size)
{
    step_times_t *times = &ticket->result->times;
    forward_batch_t batch = {.tokens = size, .decode_runs = size};
    executor_run_network(self, &batch, size, size, times);
    executor_compute_samples(self, ticket, size, NULL, times);
}

/* A failure to record is the stream's error, and ends the process like any other. */
static void record(executor_t *self, ticket_t *ticket, uint32_t size, backend_graph_t **graph)
{
    if (self->backend->capture_begin(self->forward.stream) != QN_OK) return;
    launch_decode(self, ticket, size);
    self->backend->capture_end(self->forward.stream, graph);
}

void executor_run_decode(executor_t *self, ticket_t *ticket, uint32_t runs)
{
    uint32_t size;
    decode_graph_t *decode = &self->graphs[choose_size(self, runs, &size)];
    backend_graph_t **graph = &decode->graphs[ticket - self->tickets];
    bool sampled = self->stamps.ticket == ticket;
    if (decode->warm && !*graph && !sampled) record(self, ticket, size, graph);
    if (*graph && !sampled)
        self->backend->graph_launch(self->forward.stream, *graph);
    else
        launch_decode(self, ticket, size);
    decode->warm = true;
    self->logits_rows = runs;
}

void executor_destroy_graphs(executor_t *self)
{
    for (unsigned i = 0; i < EXECUTOR_GRAPHS_MAX; i++) {
        for (unsigned t = 0; t < EXECUTOR_STEPS_MAX; t++)
            if (self->graphs[i].graphs[t]) self->backend->graph_destroy(&self->graphs[i].graphs[t]);
        self->graphs[i].warm = false; /* other kernels have yet to choose their algorithms */
    }
}
