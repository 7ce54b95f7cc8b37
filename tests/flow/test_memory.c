/* The memory daemon as its peers see it: a client daemon in another thread asks, in the role of the scheduler or of
 * compute, and the test looks at the answers. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/daemon/daemon.h"
#include "common/region/region.h"
#include "common/wire/wire.h"
#include "kernels/weight_layout.h"
#include "services/memory/weights/safetensors.h"
#include "tests/flow/runner.h"

#define DEADLINE_NS 20000000000ull

/* One question at a time: the test thread fills it in and waits, the client's thread sends it and keeps the frame of
 * the answer. */
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool wanted, answered, no_answer; /* no_answer: done once it is sent */
    qn_message_type_t type, answer_type;
    const void *message;
    uint8_t *answer; /* owned frame */
    size_t answer_bytes;
} question_t;

static question_t question = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
static char run_dir[64];
static qn_config_t *config;
static qn_arena_t arena;

/* ---- the client daemon ---- */

static qn_err_t client_init(qn_daemon_t *daemon, const qn_config_values_t *values, void **ret_state)
{
    (void)values;
    *ret_state = daemon;
    return QN_OK;
}

static uint64_t client_tick(void *state, uint64_t now_ns)
{
    pthread_mutex_lock(&question.mutex);
    qn_peer_t memory = qn_daemon_peer(state, QN_SERVICE_MEMORY);
    if (question.wanted && memory.epoch) {
        assert_int_equal(qn_daemon_send(state, memory, question.type, question.message), QN_SEND_OK);
        question.wanted = false;
        question.answered = question.no_answer;
        pthread_cond_broadcast(&question.changed);
    }
    pthread_mutex_unlock(&question.mutex);
    return now_ns + 1000000;
}

static void keep_answer(qn_message_type_t type, const void *message)
{
    qn_arena_t scratch;
    const uint8_t *frame;
    qn_arena_init(&scratch, 0);
    pthread_mutex_lock(&question.mutex);
    assert_int_equal(qn_wire_encode(qn_wire_type(type), message, &scratch, &frame, &question.answer_bytes), QN_OK);
    free(question.answer);
    question.answer = aligned_alloc(8, (question.answer_bytes + 7) & ~(size_t)7);
    memcpy(question.answer, frame, question.answer_bytes);
    question.answer_type = type;
    question.answered = true;
    pthread_cond_broadcast(&question.changed);
    pthread_mutex_unlock(&question.mutex);
    qn_arena_fini(&scratch);
}

#define KEEPER(name, type)                                                    \
    static void keep_##name(void *state, qn_peer_t from, const void *message) \
    {                                                                         \
        (void)state, (void)from;                                              \
        keep_answer(type, message);                                           \
    }
KEEPER(description, QN_MESSAGE_MODEL_DESCRIPTION)
KEEPER(reserved, QN_MESSAGE_RESERVED)
KEEPER(workspace_range, QN_MESSAGE_WORKSPACE_RANGE)
KEEPER(workspace_usage, QN_MESSAGE_WORKSPACE_USAGE)
KEEPER(grant, QN_MESSAGE_GRANT)
KEEPER(cache_stats, QN_MESSAGE_CACHE_STATS)
KEEPER(flushed, QN_MESSAGE_FLUSHED)
KEEPER(refusal, QN_MESSAGE_REFUSAL)

static const qn_handler_t client_handlers[] = {{QN_MESSAGE_MODEL_DESCRIPTION, keep_description},
                                               {QN_MESSAGE_RESERVED, keep_reserved},
                                               {QN_MESSAGE_WORKSPACE_RANGE, keep_workspace_range},
                                               {QN_MESSAGE_WORKSPACE_USAGE, keep_workspace_usage},
                                               {QN_MESSAGE_GRANT, keep_grant},
                                               {QN_MESSAGE_CACHE_STATS, keep_cache_stats},
                                               {QN_MESSAGE_FLUSHED, keep_flushed},
                                               {QN_MESSAGE_REFUSAL, keep_refusal},
                                               {QN_MESSAGE_NONE, NULL}};
static const qn_service_t client_dials[] = {QN_SERVICE_MEMORY, QN_SERVICE_NONE};
static const qn_daemon_descriptor_t scheduler_client = {.service = QN_SERVICE_SCHEDULER,
                                                        .name = "scheduler",
                                                        .dials = client_dials,
                                                        .handlers = client_handlers,
                                                        .init = client_init,
                                                        .tick = client_tick};
static const qn_daemon_descriptor_t compute_client = {.service = QN_SERVICE_COMPUTE,
                                                      .name = "compute",
                                                      .dials = client_dials,
                                                      .handlers = client_handlers,
                                                      .init = client_init,
                                                      .tick = client_tick};

/* ---- running daemons ---- */

static void start(runner_t *runner, const qn_daemon_descriptor_t *descriptor, bool inproc)
{
    runner_start(runner, descriptor, config, inproc ? 1u << QN_SERVICE_MEMORY | 1u << descriptor->service : 0);
}

static void put_question(qn_message_type_t type, const void *message, bool no_answer)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += DEADLINE_NS / 1000000000;
    pthread_mutex_lock(&question.mutex);
    question.type = type;
    question.message = message;
    question.answered = false;
    question.no_answer = no_answer;
    question.wanted = true;
    while (!question.answered && pthread_cond_timedwait(&question.changed, &question.mutex, &until) == 0) {
    }
    bool answered = question.answered;
    pthread_mutex_unlock(&question.mutex);
    if (!answered) fail_msg("no answer to %s", qn_message_name(type));
}

/* Asks and decodes the answer, which must be of `answer_type`, into `ret_answer` (views until the next question). */
static void ask(qn_message_type_t type, const void *message, qn_message_type_t answer_type, void *ret_answer)
{
    put_question(type, message, false);
    if (question.answer_type != answer_type)
        fail_msg("%s was answered by %s", qn_message_name(type), qn_message_name(question.answer_type));
    qn_arena_reset(&arena);
    assert_int_equal(qn_wire_decode(qn_wire_type(answer_type), question.answer, question.answer_bytes, &arena,
                                    ret_answer),
                     QN_OK);
}

static void tell(qn_message_type_t type, const void *message) { put_question(type, message, true); }

static void load_config(const char *const *sets, size_t count)
{
    qn_config_free(&config);
    if (qn_config_load(NULL, sets, count, run_dir, &config)) fail_msg("%s", qn_err_text());
}

static int setup(void **state)
{
    (void)state;
    static const char *const sets[] = {"model.path=deploy/models/default", "memory.kv_bytes=64MiB"};
    qn_arena_init(&arena, 0);
    snprintf(run_dir, sizeof run_dir, "/tmp/qn-flow-XXXXXX");
    assert_non_null(mkdtemp(run_dir));
    load_config(sets, 2);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    qn_config_free(&config);
    qn_arena_fini(&arena);
    free(question.answer);
    question.answer = NULL;
    snprintf(command, sizeof command, "rm -r '%s'", run_dir);
    return system(command);
}

/* ---- the model ---- */

static void describe_and_compare(bool inproc)
{
    static const char *const sets[] = {"model.path=deploy/models/default", "memory.kv_bytes=64MiB",
                                       "model.layout=rows"};
    load_config(sets, 3);
    runner_t memory, client;
    qn_describe_t describe = {.want_tensors = true};
    qn_model_description_t model;
    safetensors_t *checkpoint;
    start(&client, &compute_client, inproc); /* first, so that it asks while the model loads */
    start(&memory, &qn_memory_daemon, inproc);
    ask(QN_MESSAGE_DESCRIBE, &describe, QN_MESSAGE_MODEL_DESCRIPTION, &model);
    assert_string_equal(model.model.data, "default");
    assert_string_equal(model.architecture.data, "LlamaForCausalLM");
    assert_int_equal(model.vocab_size, 4096);
    assert_int_equal(model.max_model_len, 2048);
    assert_int_equal(model.eos_ids_count, 1);
    assert_int_equal(model.eos_ids[0], 0);
    assert_int_equal(model.bos_id, 0);
    assert_int_equal(model.block_tokens, 16);
    assert_int_equal(model.block_count, (64 << 20) / (8 * 2 * 16 * 2 * 64 * 4));
    assert_int_equal(model.kv->bytes, 64 << 20);
    assert_int_equal(model.kv->layout, QN_LAYOUT_KV);
    assert_non_null(strstr(model.config_json.data, "LlamaForCausalLM"));
    assert_int_equal(model.weights->bytes, model.weights_bytes);
    assert_int_not_equal(model.weights->fingerprint, 0);

    qn_mapping_t *weights = NULL, *kv = NULL;
    if (qn_region_import(model.weights, false, &weights)) fail_msg("%s", qn_err_text());
    assert_int_equal(qn_region_import(model.kv, true, &kv), QN_OK);
    assert_int_equal(safetensors_open("deploy/models/default", &checkpoint), QN_OK);
    assert_int_equal(model.tensors_count, safetensors_count(checkpoint));
    for (uint32_t i = 0; i < model.tensors_count; i++) {
        const qn_tensor_t *tensor = &model.tensors[i];
        const safetensors_tensor_t *source = safetensors_find(checkpoint, tensor->name.data);
        assert_non_null(source);
        assert_int_equal(tensor->layout, QN_TENSOR_LAYOUT_ROWS);
        assert_int_equal(tensor->bytes, source->bytes);
        assert_int_equal(tensor->shape_count, source->rank);
        assert_memory_equal((uint8_t *)qn_region_pointer(weights) + tensor->offset, source->data, source->bytes);
    }
    safetensors_close(&checkpoint);
    assert_int_equal(runner_stop(&memory), QN_OK);
    ((uint8_t *)qn_region_pointer(kv))[model.kv->bytes - 1] = 1; /* the mapping outlives the daemon */
    qn_region_close(&weights);
    qn_region_close(&kv);
    assert_int_equal(runner_stop(&client), QN_OK);
}

static void test_memory_describes_the_model_inproc(void **state)
{
    (void)state;
    describe_and_compare(true);
}
static void test_memory_describes_the_model_ipc(void **state)
{
    (void)state;
    describe_and_compare(false);
}

/* What the description says of a tensor is enough to read it. */
static void check_described(const qn_tensor_t *tensor, const qn_mapping_t *weights, const safetensors_t *checkpoint,
                            float tolerance)
{
    const safetensors_tensor_t *source = safetensors_find(checkpoint, tensor->name.data);
    uint64_t inputs = tensor->shape_count == 2 ? tensor->shape[1] : 1, bytes = 0;
    qn_weight_t weight = {.data = (uint8_t *)qn_region_pointer(weights) + tensor->offset,
                          .group = tensor->group,
                          .scalar = tensor->dtype == QN_DTYPE_I4   ? QN_SCALAR_INT4
                                    : tensor->dtype == QN_DTYPE_I8 ? QN_SCALAR_INT8
                                                                   : QN_SCALAR_BF16,
                          .layout = tensor->layout == QN_TENSOR_LAYOUT_PANELS ? QN_LAYOUT_PANELS : QN_LAYOUT_ROWS};
    assert_int_equal(qn_weight_bytes(weight.scalar, weight.layout, weight.group, tensor->shape[0], inputs, &bytes),
                     QN_OK);
    assert_int_equal(tensor->bytes, bytes);
    for (uint64_t o = 0; o < tensor->shape[0]; o += 7) {
        float row[768], most = 0, difference = 0;
        assert_true(inputs <= 768);
        assert_int_equal(safetensors_read_f32(source, o * inputs, inputs, row), QN_OK);
        for (uint64_t m = 0; m < inputs; m++) {
            float error = row[m] - qn_weight_get(&weight, inputs, o, m), size = row[m] < 0 ? -row[m] : row[m];
            error = error < 0 ? -error : error;
            most = size > most ? size : most;
            difference = error > difference ? error : difference;
        }
        assert_true(difference <= (weight.scalar == QN_SCALAR_BF16 ? 0 : tolerance) * most);
    }
}

static void test_memory_describes_packed_and_quantised_weights(void **state)
{
    (void)state;
    static const struct {
        const char *set;
        qn_dtype_t product, outer;
        uint32_t group;
        float tolerance;
    } cases[] = {
        {"model.quantize=none", QN_DTYPE_BF16, QN_DTYPE_BF16, 0, 0},
        {"model.quantize=int8", QN_DTYPE_I8, QN_DTYPE_I8, 0, 0.004f},
        {"model.quantize=int4", QN_DTYPE_I4, QN_DTYPE_I8, 32, 0.2f},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *const sets[] = {"model.path=deploy/models/default", "memory.kv_bytes=64MiB", cases[i].set};
        runner_t memory, client;
        qn_describe_t describe = {.want_tensors = true};
        qn_model_description_t model;
        qn_mapping_t *weights = NULL;
        safetensors_t *checkpoint;
        load_config(sets, 3);
        start(&memory, &qn_memory_daemon, true);
        start(&client, &compute_client, true);
        ask(QN_MESSAGE_DESCRIBE, &describe, QN_MESSAGE_MODEL_DESCRIPTION, &model);
        assert_int_equal(qn_region_import(model.weights, false, &weights), QN_OK);
        assert_int_equal(safetensors_open("deploy/models/default", &checkpoint), QN_OK);
        for (uint32_t t = 0; t < model.tensors_count; t++) {
            const qn_tensor_t *tensor = &model.tensors[t];
            bool outer = strstr(tensor->name.data, "embed") != NULL, plain = tensor->shape_count == 1;
            assert_int_equal(tensor->dtype, plain ? QN_DTYPE_BF16 : outer ? cases[i].outer : cases[i].product);
            assert_int_equal(tensor->layout, plain ? QN_TENSOR_LAYOUT_ROWS : QN_TENSOR_LAYOUT_PANELS);
            assert_int_equal(tensor->group, plain || outer ? 0 : cases[i].group);
            check_described(tensor, weights, checkpoint, cases[i].tolerance);
        }
        safetensors_close(&checkpoint);
        qn_region_close(&weights);
        runner_stop(&client);
        runner_stop(&memory);
    }
}

static void test_memory_describe_without_tensors_is_short(void **state)
{
    (void)state;
    runner_t memory, client;
    qn_describe_t describe = {.want_tensors = false};
    qn_model_description_t model;
    start(&memory, &qn_memory_daemon, true);
    start(&client, &scheduler_client, true);
    ask(QN_MESSAGE_DESCRIBE, &describe, QN_MESSAGE_MODEL_DESCRIPTION, &model);
    assert_int_equal(model.tensors_count, 0);
    assert_null(model.config_json.data);
    runner_stop(&client);
    runner_stop(&memory);
}

static void test_memory_unusable_model_ends_the_daemon(void **state)
{
    (void)state;
    static const struct {
        const char *set;
        qn_err_t err;
    } bad[] = {
        {"model.path=/nonexistent", QN_ERR_NOT_FOUND}, {"model.path=tests/unit", QN_ERR_NOT_FOUND},
        {"model.max_model_len=2049", QN_ERR_CONFIG},   {"memory.kv_bytes=1KiB", QN_ERR_CONFIG},
        {"memory.share=cuda_vmm", QN_ERR_CONFIG},      {"model.layout=rows", QN_ERR_CONFIG},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *const sets[] = {"model.path=deploy/models/default", "model.quantize=int4", bad[i].set};
        load_config(sets, 3);
        assert_int_equal(qn_daemon_run(&qn_memory_daemon, config, 0, eventfd(0, EFD_CLOEXEC)), bad[i].err);
    }
}

/* ---- leases ---- */

#define TOKENS 40

static uint32_t ids[TOKENS];

static void lease(uint64_t sequence, bool open, uint32_t tokens, uint32_t ids_count, qn_grant_t *ret_grant)
{
    for (uint32_t i = 0; i < TOKENS; i++)
        ids[i] = i * 3;
    qn_lease_item_t item = {.sequence = sequence, .tokens = tokens, .ids_count = ids_count, .open = open};
    qn_lease_t message = {
        .batch = sequence + 100, .items = &item, .items_count = 1, .ids = ids, .ids_count = ids_count};
    ask(QN_MESSAGE_LEASE, &message, QN_MESSAGE_GRANT, ret_grant);
    assert_int_equal(ret_grant->batch, sequence + 100);
    assert_int_equal(ret_grant->items_count, 1);
    assert_int_equal(ret_grant->items[0].sequence, sequence);
}

static void commit(uint64_t sequence, uint32_t position, uint32_t count)
{
    qn_commit_item_t item = {.sequence = sequence, .position = position, .ids_offset = position, .ids_count = count};
    qn_commit_t message = {.items = &item, .items_count = 1, .ids = ids, .ids_count = position + count};
    tell(QN_MESSAGE_COMMIT, &message);
}

static void release(uint64_t sequence)
{
    qn_release_t message = {.sequences = &sequence, .sequences_count = 1};
    tell(QN_MESSAGE_RELEASE, &message);
}

static qn_cache_stats_t cache_stats(void)
{
    qn_cache_query_t query = {0};
    qn_cache_stats_t stats;
    ask(QN_MESSAGE_CACHE_QUERY, &query, QN_MESSAGE_CACHE_STATS, &stats);
    assert_int_equal(stats.used_blocks + stats.cached_blocks + stats.free_blocks, stats.total_blocks);
    return stats;
}

static void start_pair(runner_t *memory, runner_t *client, bool inproc)
{
    qn_describe_t describe = {0};
    qn_model_description_t model;
    start(memory, &qn_memory_daemon, inproc);
    start(client, &scheduler_client, inproc);
    ask(QN_MESSAGE_DESCRIBE, &describe, QN_MESSAGE_MODEL_DESCRIPTION, &model);
}

static void test_memory_lease_commit_share_release_flush(void **state)
{
    (void)state;
    runner_t memory, client;
    qn_grant_t grant;
    start_pair(&memory, &client, true);
    lease(1, true, TOKENS, TOKENS, &grant);
    assert_int_equal(grant.items[0].outcome, QN_GRANT_OUTCOME_GRANTED);
    assert_int_equal(grant.items[0].block_count, 3);
    assert_int_equal(grant.items[0].cached_tokens, 0);
    uint32_t first_block = grant.blocks[0];
    lease(1, true, TOKENS, TOKENS, &grant);
    assert_int_equal(grant.items[0].outcome, QN_GRANT_OUTCOME_ALREADY_OPEN);
    lease(2, false, TOKENS, 0, &grant);
    assert_int_equal(grant.items[0].outcome, QN_GRANT_OUTCOME_UNKNOWN_SEQUENCE);
    lease(1, false, 49, 0, &grant);
    assert_int_equal(grant.items[0].first_block, 3);
    assert_int_equal(grant.items[0].block_count, 1);
    commit(1, 0, TOKENS);
    lease(2, true, TOKENS, TOKENS, &grant); /* 40 tokens: two full blocks are shared */
    assert_int_equal(grant.items[0].cached_tokens, 32);
    assert_int_equal(grant.items[0].block_count, 3);
    assert_int_equal(grant.blocks[0], first_block);
    assert_int_equal(cache_stats().used_blocks, 5);
    release(1);
    release(2);
    release(77); /* unknown: ignored */
    qn_cache_stats_t stats = cache_stats();
    assert_int_equal(stats.used_blocks, 0);
    assert_int_equal(stats.cached_blocks, 2);
    assert_int_equal(stats.hit_tokens, 32);
    assert_int_equal(stats.sequences, 0);
    qn_flush_cache_t flush = {0};
    qn_flushed_t flushed;
    ask(QN_MESSAGE_FLUSH_CACHE, &flush, QN_MESSAGE_FLUSHED, &flushed);
    assert_int_equal(flushed.freed_blocks, 2);
    assert_int_equal(cache_stats().free_blocks, stats.total_blocks);
    runner_stop(&client);
    runner_stop(&memory);
}

static void test_memory_lease_beyond_all_blocks_is_short(void **state)
{
    (void)state;
    runner_t memory, client;
    qn_grant_t grant;
    start_pair(&memory, &client, true);
    uint32_t total = cache_stats().total_blocks; /* 512 blocks: four sequences of 2048 tokens */
    for (uint64_t sequence = 1; sequence <= 5; sequence++) {
        lease(sequence, true, 2048, 0, &grant);
        assert_int_equal(grant.items[0].outcome,
                         sequence <= 4 ? QN_GRANT_OUTCOME_GRANTED : QN_GRANT_OUTCOME_SHORT_OF_BLOCKS);
        assert_int_equal(grant.free_blocks, total - 128 * (sequence <= 4 ? sequence : 4));
    }
    runner_stop(&client);
    runner_stop(&memory);
}

/* 1030 sequences of 1024 blocks in one Lease, of which a Grant can carry 1024. */
static void test_memory_lease_beyond_one_grant_is_short(void **state)
{
    (void)state;
    enum { ITEMS = 1030, FIT = 1024 };
    static const char *const sets[] = {"model.path=tests/golden/llama3", "memory.block_tokens=1",
                                       "memory.kv_dtype=bf16", "memory.kv_bytes=900MiB", "scheduler.queue_limit=2048"};
    static qn_lease_item_t items[ITEMS];
    runner_t memory, client;
    qn_grant_t grant;
    load_config(sets, 5);
    start_pair(&memory, &client, true);
    for (uint32_t i = 0; i < ITEMS; i++)
        items[i] = (qn_lease_item_t){.sequence = i + 1, .tokens = 1024, .open = true};
    qn_lease_t message = {.batch = 1, .items = items, .items_count = ITEMS};
    ask(QN_MESSAGE_LEASE, &message, QN_MESSAGE_GRANT, &grant);
    assert_int_equal(grant.items_count, ITEMS);
    assert_int_equal(grant.blocks_count, FIT * 1024);
    for (uint32_t i = 0; i < ITEMS; i++)
        assert_int_equal(grant.items[i].outcome, i < FIT ? QN_GRANT_OUTCOME_GRANTED : QN_GRANT_OUTCOME_SHORT_OF_BLOCKS);
    lease(FIT + 1, true, 1024, 0, &grant); /* asked again it is there */
    assert_int_equal(grant.items[0].outcome, QN_GRANT_OUTCOME_GRANTED);
    runner_stop(&client);
    runner_stop(&memory);
}

static void test_memory_bad_leases_are_refused(void **state)
{
    (void)state;
    runner_t memory, client;
    qn_refusal_t refusal;
    start_pair(&memory, &client, true);
    static const struct {
        uint32_t offset, count;
    } bad[] = {{0, 5}, {4, 1}, {5, 0}, {UINT32_MAX, 2}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        qn_lease_item_t item = {
            .sequence = 1, .tokens = 10, .open = true, .ids_offset = bad[i].offset, .ids_count = bad[i].count};
        qn_lease_t message = {.items = &item, .items_count = 1, .ids = ids, .ids_count = 4};
        ask(QN_MESSAGE_LEASE, &message, QN_MESSAGE_REFUSAL, &refusal);
        assert_int_equal(refusal.status, 400);
    }
    assert_int_equal(cache_stats().sequences, 0);
    runner_stop(&client);
    runner_stop(&memory);
}

static void test_memory_only_the_scheduler_may_lease(void **state)
{
    (void)state;
    runner_t memory, client;
    qn_refusal_t refusal;
    qn_describe_t describe = {0};
    qn_model_description_t model;
    start(&memory, &qn_memory_daemon, true);
    start(&client, &compute_client, true);
    ask(QN_MESSAGE_DESCRIBE, &describe, QN_MESSAGE_MODEL_DESCRIPTION, &model);
    qn_lease_item_t item = {.sequence = 1, .tokens = 10, .open = true};
    qn_lease_t message = {.items = &item, .items_count = 1};
    ask(QN_MESSAGE_LEASE, &message, QN_MESSAGE_REFUSAL, &refusal);
    assert_int_equal(refusal.status, 400);
    runner_stop(&client);
    runner_stop(&memory);
}

static void test_memory_dead_scheduler_holds_nothing(void **state)
{
    (void)state;
    runner_t memory, client;
    qn_grant_t grant;
    start_pair(&memory, &client, false);
    lease(1, true, TOKENS, TOKENS, &grant);
    commit(1, 0, TOKENS);
    lease(2, true, 500, 0, &grant);
    assert_int_equal(cache_stats().used_blocks, 35);
    runner_stop(&client);
    start(&client, &scheduler_client, false); /* the next life */
    qn_cache_stats_t stats = cache_stats();
    assert_int_equal(stats.sequences, 0);
    assert_int_equal(stats.used_blocks, 0);
    assert_int_equal(stats.cached_blocks, 2); /* what was written is still found */
    lease(1, true, TOKENS, TOKENS, &grant);
    assert_int_equal(grant.items[0].outcome, QN_GRANT_OUTCOME_GRANTED);
    assert_int_equal(grant.items[0].cached_tokens, 32);
    runner_stop(&client);
    runner_stop(&memory);
}

/* ---- reserving ---- */

static uint64_t reserve(const char *name, uint64_t bytes, uint64_t *ret_bytes)
{
    qn_reserve_t message = {.kind = QN_REGION_KIND_ACTIVATIONS, .bytes = bytes, .name = qn_text(name)};
    qn_reserved_t reserved;
    ask(QN_MESSAGE_RESERVE, &message, QN_MESSAGE_RESERVED, &reserved);
    assert_string_equal(reserved.region->name.data, name);
    assert_int_equal(reserved.region->layout, QN_LAYOUT_ACTIVATIONS);
    *ret_bytes = reserved.region->bytes;
    return reserved.region->id;
}

static void test_memory_reserved_regions_are_kept_by_name(void **state)
{
    (void)state;
    runner_t memory, client;
    uint64_t bytes;
    start(&memory, &qn_memory_daemon, false);
    start(&client, &compute_client, false);
    uint64_t scratch = reserve("scratch", 10000, &bytes);
    assert_int_equal(bytes, 10000);
    assert_int_not_equal(reserve("other", 10000, &bytes), scratch);
    runner_stop(&client);
    start(&client, &compute_client, false); /* a restarted compute finds the same bytes */
    assert_int_equal(reserve("scratch", 10000, &bytes), scratch);
    assert_int_equal(reserve("scratch", 1, &bytes), scratch);
    assert_int_equal(bytes, 10000);
    assert_int_not_equal(reserve("scratch", 10001, &bytes), scratch);
    assert_int_equal(bytes, 10001);
    runner_stop(&client);
    runner_stop(&memory);
}

static void test_memory_bad_reservations_are_refused(void **state)
{
    (void)state;
    static const struct {
        qn_region_kind_t kind;
        const char *name;
        uint64_t bytes;
        int status;
    } bad[] = {
        {QN_REGION_KIND_WEIGHTS, "scratch", 100, 400},
        {QN_REGION_KIND_KV, "scratch", 100, 400},
        {QN_REGION_KIND_STATE, "", 100, 400},
        {QN_REGION_KIND_STATE, "a:b", 100, 400},
        {QN_REGION_KIND_STATE, "kv", 100, 400},
        {QN_REGION_KIND_STATE, "slots", UINT64_MAX, 507},
        {QN_REGION_KIND_STATE, "slots", (uint64_t)1 << 45, 507},
    };
    runner_t memory, client;
    qn_refusal_t refusal;
    qn_describe_t describe = {0};
    qn_model_description_t model;
    start(&memory, &qn_memory_daemon, true);
    start(&client, &compute_client, true);
    ask(QN_MESSAGE_DESCRIBE, &describe, QN_MESSAGE_MODEL_DESCRIPTION, &model);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        qn_reserve_t message = {.kind = bad[i].kind, .bytes = bad[i].bytes, .name = qn_text(bad[i].name)};
        ask(QN_MESSAGE_RESERVE, &message, QN_MESSAGE_REFUSAL, &refusal);
        assert_int_equal(refusal.status, bad[i].status);
    }
    runner_stop(&client);
    runner_stop(&memory);
}

/* ---- the workspace ---- */

static qn_workspace_usage_t workspace_usage(void)
{
    qn_workspace_release_t message = {0};
    qn_workspace_usage_t usage;
    ask(QN_MESSAGE_WORKSPACE_RELEASE, &message, QN_MESSAGE_WORKSPACE_USAGE, &usage);
    return usage;
}

static void test_memory_workspace_is_leased_mapped_and_freed_with_its_holder(void **state)
{
    (void)state;
    runner_t memory, client;
    qn_workspace_lease_t want = {.bytes = 1000, .lifetime_ms = 3600000};
    qn_workspace_range_t range;
    qn_mapping_t *mapping;
    start(&memory, &qn_memory_daemon, false);
    start(&client, &compute_client, false);
    ask(QN_MESSAGE_WORKSPACE_LEASE, &want, QN_MESSAGE_WORKSPACE_RANGE, &range);
    assert_int_equal(range.bytes, 1024);
    assert_int_equal(range.region->kind, QN_REGION_KIND_TAP);
    assert_int_equal(qn_region_import(range.region, true, &mapping), QN_OK);
    memset((char *)qn_region_pointer(mapping) + range.offset, 7, range.bytes);
    qn_region_close(&mapping);
    assert_int_equal(workspace_usage().leased_bytes, 1024);
    qn_workspace_lease_t renew = {.lease = range.lease, .lifetime_ms = 5000};
    ask(QN_MESSAGE_WORKSPACE_LEASE, &renew, QN_MESSAGE_WORKSPACE_RANGE, &range);
    assert_int_equal(range.lifetime_ms, 5000);
    runner_stop(&client);
    start(&client, &compute_client, false); /* the next life */
    assert_int_equal(workspace_usage().leases_count, 0);
    runner_stop(&client);
    runner_stop(&memory);
}

static void test_memory_workspace_lease_ends_at_its_deadline(void **state)
{
    (void)state;
    runner_t memory, client;
    qn_workspace_lease_t want = {.bytes = 64, .lifetime_ms = 1};
    qn_workspace_range_t range;
    uint64_t until_ns = qn_clock_now_ns() + DEADLINE_NS;
    start(&memory, &qn_memory_daemon, true);
    start(&client, &compute_client, true);
    ask(QN_MESSAGE_WORKSPACE_LEASE, &want, QN_MESSAGE_WORKSPACE_RANGE, &range);
    while (workspace_usage().leases_count > 0)
        assert_true(qn_clock_now_ns() < until_ns);
    runner_stop(&client);
    runner_stop(&memory);
}

static void test_memory_workspace_bad_leases_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes, lease;
        int status;
    } bad[] = {{0, 0, 400}, {(uint64_t)1 << 40, 0, 400}, {0, 99, 404}};
    runner_t memory, client;
    qn_refusal_t refusal;
    start(&memory, &qn_memory_daemon, true);
    start(&client, &compute_client, true);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        qn_workspace_lease_t want = {.bytes = bad[i].bytes, .lease = bad[i].lease, .lifetime_ms = 1000};
        ask(QN_MESSAGE_WORKSPACE_LEASE, &want, QN_MESSAGE_REFUSAL, &refusal);
        assert_int_equal(refusal.status, bad[i].status);
    }
    runner_stop(&client);
    runner_stop(&memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_memory_describes_the_model_inproc, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_describes_the_model_ipc, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_describes_packed_and_quantised_weights, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_describe_without_tensors_is_short, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_unusable_model_ends_the_daemon, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_lease_commit_share_release_flush, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_lease_beyond_all_blocks_is_short, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_lease_beyond_one_grant_is_short, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_bad_leases_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_only_the_scheduler_may_lease, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_dead_scheduler_holds_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_reserved_regions_are_kept_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_bad_reservations_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_workspace_is_leased_mapped_and_freed_with_its_holder, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_memory_workspace_lease_ends_at_its_deadline, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_workspace_bad_leases_are_refused, setup, teardown),
    };
    return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
