/* How attention_resident.cu shares out its work: plain arithmetic on positions, for the device and for the test that
 * walks it on the host.
 *
 * A piece is 64 positions, what a warp takes at a time; a cell is 256, a piece for each of a block's four warps; a
 * split is what is summed on its own and then added, in ascending order, to what stands before it. Cells and splits
 * lie at multiples of positions of the sequence, so that its sums do not depend on who computes which of them. Up to
 * position 4096 a split is a cell; beyond they grow with the position, which bounds their number at SPLIT_COUNT.
 *
 * All pieces of a step are one line: sequence by sequence, in each kv head by kv head. It is cut into runs of about
 * equal length, one for each block of the grid. */
#ifndef QN_KERNELS_CUDA_ATTENTION_ATTENTION_CELLS_H
#define QN_KERNELS_CUDA_ATTENTION_ATTENTION_CELLS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC__
#define CELLS_CODE static __host__ __device__ __forceinline__
#else
#define CELLS_CODE static inline
#endif

#define PIECE 64
#define CELL_PIECES 4
#define CELL (PIECE * CELL_PIECES)
#define SPLIT_COUNT 64 /* of one sequence; the last one is as long as it takes */

/* A sequence's part in the line. */
typedef struct {
    uint32_t begin, end;  /* positions that its token sees */
    uint32_t first, stop; /* cells that hold them */
} span_t;

/* Where a run begins. Cell 0 stands for the first of the (sequence, head), whichever that is. */
typedef struct {
    uint32_t run, head, cell;
    uint32_t before; /* pieces of the line before the sequence */
} cut_t;

/* Of a run at `position`; one without tokens has no cells. */
CELLS_CODE span_t span_of(uint32_t position, uint32_t tokens, uint32_t window)
{
    span_t span;
    span.end = tokens ? position + 1 : 0;
    span.begin = window && span.end > window ? span.end - window : 0;
    span.first = span.begin / CELL, span.stop = (span.end + CELL - 1) / CELL;
    return span;
}

CELLS_CODE uint32_t pieces_of(span_t span) { return (span.end + PIECE - 1) / PIECE - span.first * CELL_PIECES; }

/* Greatest power of two that is at most `cell`, as its exponent; cell > 0. */
CELLS_CODE uint32_t octave_of(uint32_t cell)
{
#ifdef __CUDA_ARCH__
    return 31 - (uint32_t)__clz((int)cell);
#else
    return 31 - (uint32_t)__builtin_clz(cell);
#endif
}

/* Cells 16 .. 127 have 8 splits an octave, further ones 4, up to cell 8191; what comes after is the last split's. */
CELLS_CODE uint32_t split_shift(uint32_t octave) { return octave < 4 ? 0 : octave < 7 ? octave - 3 : octave - 2; }

/* The split of a cell, counted from the sequence's beginning. */
CELLS_CODE uint32_t split_of(uint32_t cell)
{
    if (cell < 16) return cell;
    uint32_t octave = octave_of(cell);
    if (octave > 12) return SPLIT_COUNT - 1;
    uint32_t before = octave < 7 ? 16 + (octave - 4) * 8 : 40 + (octave - 7) * 4;
    return before + ((cell - (1u << octave)) >> split_shift(octave));
}

/* The first cell at or after `cell` that begins a split; the cells' end where there is none. */
CELLS_CODE uint32_t next_split(uint32_t cell, uint32_t stop)
{
    if (cell >= 16) {
        uint32_t octave = octave_of(cell), step = 1u << split_shift(octave);
        if (octave > 12) return stop;
        cell = (cell + step - 1) & ~(step - 1);
        if (cell >= 1u << 13) return stop;
    }
    return cell < stop ? cell : stop;
}

/* The cut at piece `at` of the line, which lies in this sequence: `before` pieces of the line come before it. It is
 * made at the end of a (sequence, head) that is at most `reach` pieces away, else where the next split begins. */
CELLS_CODE cut_t cut_in(span_t span, uint32_t run, uint32_t before, uint32_t at, uint32_t kv_heads, uint32_t reach)
{
    uint32_t pieces = pieces_of(span), inside = (at - before) % pieces;
    cut_t cut;
    cut.run = run, cut.head = (at - before) / pieces, cut.cell = 0, cut.before = before;
    if (inside <= reach && inside <= pieces - inside) return cut;
    cut.cell = span.stop;
    if (pieces - inside > reach)
        cut.cell = next_split(span.first + (inside + CELL_PIECES - 1) / CELL_PIECES, span.stop);
    if (cut.cell < span.stop) return cut;
    cut.cell = 0;
    if (++cut.head == kv_heads) cut.head = 0, cut.run++, cut.before += kv_heads * pieces;
    return cut;
}

/* Where block `block`'s run is to begin, as near as cuts allow. */
CELLS_CODE uint32_t run_begin(uint32_t block, uint32_t blocks, uint32_t all)
{
    return (uint32_t)((uint64_t)block * all / blocks);
}

/* A cut costs its two blocks about as much as this many pieces, so none is made that near to a boundary. */
CELLS_CODE uint32_t cut_reach(uint32_t blocks, uint32_t all)
{
    uint32_t reach = all / blocks / 3;
    return reach < 8 ? reach : 8;
}

/* A number below `blocks` for a (sequence, head) that begins at piece `at`; no two that are cut have the same, since
 * between their beginnings a run was to begin. */
CELLS_CODE uint32_t place_of(uint32_t at, uint32_t blocks, uint32_t all)
{
    return (uint32_t)((((uint64_t)at + 1) * blocks - 1) / all);
}

/* Part of a run: from one cut to another. */
typedef struct {
    cut_t from, to;
} part_t;

#define PARTS_MAX 3

/* The order in which a block takes its run: first what others add to, (sequence, head)s that are cut, so that nobody
 * waits for them when all end; then whole ones. `span` is that of from's sequence. Returns how many parts there are. */
CELLS_CODE uint32_t order_run(cut_t from, cut_t to, span_t span, uint32_t kv_heads, part_t *ret_parts)
{
    uint32_t count = 0;
    cut_t after = from, last = to;
    if (from.run == to.run && from.head == to.head) {
        ret_parts[0].from = from, ret_parts[0].to = to;
        return from.cell < to.cell;
    }
    last.cell = 0;
    if (to.cell) ret_parts[count].from = last, ret_parts[count++].to = to;
    if (from.cell) {
        after.cell = 0;
        if (++after.head == kv_heads) after.head = 0, after.run++, after.before += kv_heads * pieces_of(span);
        ret_parts[count].from = from, ret_parts[count++].to = after;
    }
    if (after.run != last.run || after.head != last.head) ret_parts[count].from = after, ret_parts[count++].to = last;
    return count;
}

#endif
