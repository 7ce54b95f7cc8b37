/* What is this?      Device memory as quintet-memory makes and fills it: weights against the same weights in host
 *                    memory, regions that are zero, outlive their owner's mapping, and are refused when there is no
 *                    room.
 * State owned:       a temporary checkpoint.
 * Must never:        compare with anything but what the same code gives on a host, which unit tests check.
 * Read next:         services/memory/weights/weights_fill.c, common/region/region.h; tests/unit/test_region_cuda.c for several
 *                    processes. */
#include "common/region/region.h"
#include "services/memory/weights/weights.h"
#include "tests/gpu/check.h"
#include "tests/gpu/checkpoint.h"

static const weights_format_t ROWS = {.layout = QN_LAYOUT_ROWS};
static const qn_share_t SHARES[] = {QN_SHARE_CUDA_IPC, QN_SHARE_CUDA_VMM};

static qn_region_spec_t spec_of(qn_share_t share, uint64_t bytes)
{
    static uint64_t id = 1;
    return (qn_region_spec_t){.id = id++,
                              .kind = QN_REGION_KIND_WEIGHTS,
                              .share = share,
                              .bytes = bytes,
                              .epoch = 1,
                              .device = share == QN_SHARE_MEMFD ? -1 : 0,
                              .name = "check"};
}

static qn_mapping_t *make(qn_share_t share, uint64_t bytes)
{
    qn_mapping_t *region;
    qn_region_spec_t spec = spec_of(share, bytes);
    must_ok(qn_region_create(&spec, &region));
    return region;
}

static void expect(check_t *check, bool right, const char *what)
{
    check->cases++;
    if (!right) check_failed(check, what);
}

/* ---- weights ---- */

static qn_mapping_t *filled(const weights_t *weights, qn_share_t share, unsigned threads)
{
    weights_progress_t progress = {0};
    qn_mapping_t *region = make(share, weights_bytes(weights));
    must_ok(weights_fill(weights, region, threads, &progress));
    uint64_t sum = 0;
    for (size_t i = 0; i < weights_count(weights); i++)
        sum += weights_at(weights, i)->bytes;
    if (progress.done_bytes != sum)
        fprintf(stderr, "progress says %" PRIu64 " of %" PRIu64 "\n", progress.done_bytes, sum), exit(70);
    return region;
}

static void compare_weights(check_t *check, const weights_t *weights, const char *label)
{
    uint64_t bytes = weights_bytes(weights);
    qn_mapping_t *host = filled(weights, QN_SHARE_MEMFD, 2);
    void *got = hold(&check->held, bytes);
    for (unsigned i = 0; i < 4; i++) {
        unsigned threads = i % 2 ? 7 : 1;
        snprintf(check->label, sizeof check->label, "%s, share %d, %u threads", label, SHARES[i / 2], threads);
        qn_mapping_t *device = filled(weights, SHARES[i / 2], threads);
        pull(got, qn_region_pointer(device), bytes);
        expect(check, memcmp(got, qn_region_pointer(host), bytes) == 0, "other bytes than in host memory");
        qn_region_close(&device);
    }
    qn_region_close(&host);
    held_free(&check->held);
}

static void check_models(check_t *check, const char *directory)
{
    static const char *const dtypes[] = {"BF16", "F32", "F16"};
    const qn_model_config_t configs[] = {
        {.layers = 2,
         .hidden = 136,
         .heads = 4,
         .kv_heads = 2,
         .head_dim = 34,
         .intermediate = 203,
         .vocab = 40009,
         .gated_mlp = true,
         .qkv_bias = true,
         .rope.type = QN_ROPE_DEFAULT},
        {.architecture = QN_ARCHITECTURE_GPT2,
         .layers = 2,
         .hidden = 76,
         .heads = 2,
         .kv_heads = 2,
         .head_dim = 38,
         .intermediate = 300,
         .vocab = 1031,
         .max_positions = 61,
         .norm = QN_NORM_LAYER,
         .rope.type = QN_ROPE_NONE,
         .qkv_bias = true,
         .output_bias = true,
         .mlp_bias = true,
         .tie_embeddings = true},
    };
    for (unsigned c = 0; c < 2; c++) {
        weights_t *weights;
        for (unsigned d = 0; d < 3; d++) {
            checkpoint_make(directory, &configs[c], dtypes[d]);
            must_ok(weights_plan(directory, &configs[c], &ROWS, &weights));
            compare_weights(check, weights, dtypes[d]);
            weights_destroy(&weights);
        }
        must_ok(weights_plan_dummy(&configs[c], 77, &ROWS, &weights));
        compare_weights(check, weights, "dummy");
        weights_destroy(&weights);
    }
}

static void check_cancel(check_t *check, qn_share_t share)
{
    const qn_model_config_t config = {.layers = 1,
                                      .hidden = 64,
                                      .heads = 1,
                                      .kv_heads = 1,
                                      .head_dim = 64,
                                      .intermediate = 64,
                                      .vocab = 1000,
                                      .gated_mlp = true,
                                      .rope.type = QN_ROPE_DEFAULT};
    weights_t *weights;
    weights_progress_t progress = {.cancel = true};
    must_ok(weights_plan_dummy(&config, 1, &ROWS, &weights));
    qn_mapping_t *region = make(share, weights_bytes(weights));
    expect(check, weights_fill(weights, region, 3, &progress) == QN_ERR_CANCELLED && progress.done_bytes == 0,
           "filling was not cancelled");
    qn_region_close(&region);
    weights_destroy(&weights);
}

/* ---- regions ---- */

static void check_zero(check_t *check, qn_share_t share)
{
    enum { BYTES = 64 << 20 };
    void *poison, *got = hold(&check->held, BYTES);
    must(cudaMalloc(&poison, BYTES), "device memory");
    must(cudaMemset(poison, 0xff, BYTES), "poison");
    must(cudaFree(poison), "free"); /* what it held may well be the region's now */
    qn_mapping_t *region = make(share, BYTES), *again = NULL;
    pull(got, qn_region_pointer(region), BYTES);
    const uint8_t *bytes = got;
    expect(check, bytes[0] == 0 && memcmp(bytes, bytes + 1, BYTES - 1) == 0, "a new region is not zero");
    expect(check, (uintptr_t)qn_region_pointer(region) % 256 == 0, "a region is not aligned");
    qn_region_t wire;
    qn_region_describe(region, &wire);
    must_ok(qn_region_import(&wire, false, &again));
    expect(check, again == region, "its own process maps a region twice");
    qn_region_close(&again);
    qn_region_close(&region);
    held_free(&check->held);
}

/* The descriptor alone keeps the bytes; whoever knows their number takes them over. */
static void check_adopt(check_t *check)
{
    enum { BYTES = (5 << 20) + 123 };
    qn_mapping_t *region = make(QN_SHARE_CUDA_VMM, BYTES), *adopted = NULL;
    void *got = hold(&check->held, BYTES), *want = hold(&check->held, BYTES);
    memset(want, 0x5a, BYTES);
    must(cudaMemcpy(qn_region_pointer(region), want, BYTES, cudaMemcpyHostToDevice), "copy to the device");
    must_ok(qn_region_seal(region, 99));
    uint64_t id = qn_region_id(region);
    int fd = dup(qn_region_fd(region));
    qn_region_close(&region);
    expect(check, qn_region_adopt_device(fd, 0, BYTES - 5000, "", &adopted) == QN_ERR_INVALID && !adopted,
           "a region of another size was adopted");
    expect(check, qn_region_adopt_device(fd, 0, (uint64_t)BYTES + (64 << 20), "", &adopted) && !adopted,
           "a region was adopted beyond its end");
    must_ok(qn_region_adopt_device(fd, 0, BYTES, "", &adopted));
    pull(got, qn_region_pointer(adopted), BYTES);
    expect(check, memcmp(got, want, BYTES) == 0, "an adopted region has other bytes");
    expect(check,
           qn_region_id(adopted) == id && qn_region_fingerprint(adopted) == 99 && qn_region_sealed(adopted) &&
               qn_region_bytes(adopted) == BYTES && qn_region_fd(adopted) == fd,
           "an adopted region is another");
    qn_region_close(&adopted);
    held_free(&check->held);
}

/* A refusal leaves everything as it was, and tells numbers. */
static void check_refusals(check_t *check, qn_share_t share)
{
    uint64_t largest, before, after;
    qn_mapping_t *region = NULL, *second = NULL;
    must_ok(qn_region_largest_bytes(share, 0, &largest));
    must_ok(qn_region_free_bytes(share, 0, &before));
    qn_region_spec_t spec = spec_of(share, largest + 1), other = spec_of(share, largest);
    expect(check, qn_region_create(&spec, &region) == QN_ERR_LIMIT && strstr(qn_err_text(), "75 %"),
           "more than 75 % of the device was given");
    region = make(share, largest / 2);
    expect(check,
           qn_region_create(&other, &second) == QN_ERR_NO_MEMORY && strstr(qn_err_text(), "are free") &&
               strstr(qn_err_text(), "memory.kv_bytes"),
           "too little memory is not said clearly");
    qn_region_close(&region);
    must_ok(qn_region_free_bytes(share, 0, &after));
    expect(check, after + ((uint64_t)64 << 20) > before, "a refused region left something behind");
    expect(check, qn_region_probe(share, 0) == QN_OK, "the device is not usable after a refusal");
    expect(check, qn_region_probe(share, 63) == QN_ERR_CONFIG && strstr(qn_err_text(), "compute.device is 63"),
           "a device that does not exist is not said clearly");
}

unsigned check_memory(void)
{
    check_t check = check_begin("memory", QN_SCALAR_BF16, false);
    char directory[] = "/tmp/quintet-check-XXXXXX";
    if (!mkdtemp(directory)) exit(70);
    check_models(&check, directory);
    checkpoint_remove(directory);
    for (unsigned i = 0; i < 2; i++) {
        snprintf(check.label, sizeof check.label, "share %d", SHARES[i]);
        check_cancel(&check, SHARES[i]);
        check_zero(&check, SHARES[i]);
        check_refusals(&check, SHARES[i]);
    }
    check_adopt(&check);
    return check_end(&check);
}
