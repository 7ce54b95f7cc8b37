/* How CPU attention kernels walk their work: queries are the tokens of all runs of the launch, in order. */
#ifndef QN_KERNELS_CPU_ATTENTION_ATTENTION_H
#define QN_KERNELS_CPU_ATTENTION_ATTENTION_H

#include "kernels/cpu/cpu.h"

#define QN_ATTENTION_DIM_MAX 512 /* model_config.h's QN_HEAD_DIM_MAX: rows on the stack */

typedef struct {
    size_t row;            /* of q and out */
    const uint32_t *table; /* the slot's block table */
    uint32_t begin, end;   /* positions it sees: [begin, end) */
} qn_query_t;

static inline size_t qn_query_count(const qn_attention_t *a)
{
    size_t count = 0;
    for (uint32_t i = 0; i < a->run_count; i++)
        count += a->runs[i].tokens;
    return count;
}

static inline qn_query_t qn_query_make(const qn_attention_t *a, const qn_run_t *run, uint32_t token)
{
    uint32_t end = run->position + token + 1;
    return (qn_query_t){
        .row = (size_t)run->first + token,
        .table = a->tables.block_tables + (size_t)run->slot * a->tables.table_blocks,
        .begin = a->window && end > a->window ? end - a->window : 0,
        .end = end,
    };
}

/* The query `index` of the launch. */
static inline qn_query_t qn_query_find(const qn_attention_t *a, size_t index)
{
    uint32_t i = 0;
    while (index >= a->runs[i].tokens)
        index -= a->runs[i++].tokens;
    return qn_query_make(a, &a->runs[i], (uint32_t)index);
}

/* Elements from the start of the region to the K (which 0) or V (1) of one position and kv head. */
static inline size_t qn_kv_at(const qn_attention_t *a, const qn_query_t *query, uint32_t which, uint32_t position,
                              uint32_t kv_head)
{
    uint32_t block = query->table[position / a->kv.block_tokens];
    return qn_kv_offset(&a->kv, a->layer, which, block, position % a->kv.block_tokens) +
           (size_t)kv_head * a->kv.head_dim;
}

#endif
