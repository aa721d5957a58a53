/* Convolutions with kernels of 3 x 3 and stride 1 in Winograd's form F(2 x 2, 3 x 3); float32, channels last.

   The maps are read in tiles of 4 x 4 pixels that overlap by 2; each tile, transformed to 16 values, gives 2 x 2 pixels of the
   output by 16 products in the place of 36. The transformed values of a few tiles stay in the cache. See winograd.py. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16         /* floats of a vector register: AVX-512 */
#define ROWS 8           /* of a product that are kept in registers, of as many vectors as fit */
#define VECTORS 4
#define VALUES 16        /* of a transformed tile */
#define FLOATS 98304     /* of transformed tiles, in and out: a part of the second cache */
#define SUMMED 24        /* tiles are dealt with in multiples of it, where there are enough */
#define MOST_TILES 96
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned_vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float half_vector __attribute__((vector_size(2 * LANES)));
typedef float unaligned_half __attribute__((vector_size(2 * LANES), aligned(4)));

struct shape { int64_t channels_in, channels_out, height, width, padding; const float *bias; };      /* of the maps, pixels; bias of the outgoing channels or NULL */

INLINE vector load(const float *from) { return *(const unaligned_vector *)from; }
INLINE void store(float *to, vector value) { *(unaligned_vector *)to = value; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t rounded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
static float *allocate(int64_t floats) { return aligned_alloc(64, rounded(floats) * sizeof(float)); }

/* ---- products ---- */

/* out [rows, 16 full + 8 half] = or += x [rows, depth] w [depth, 16 full + 8 half]; x is read every x_row and x_step floats */
INLINE void product(const int rows, const int full, const int half, const int add, int64_t depth, const float *x, int64_t x_row, int64_t x_step,
                    const float *w, int64_t w_step, float *out, int64_t out_row) {
    vector sums[ROWS][VECTORS];
    half_vector halves[ROWS];
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < full; v++) sums[r][v] = add ? load(out + r * out_row + v * LANES) : (vector){0};
        if (half) halves[r] = add ? *(const unaligned_half *)(out + r * out_row + full * LANES) : (half_vector){0};
    }
    for (int64_t k = 0; k < depth; k++, x += x_step, w += w_step) {
        vector weights[VECTORS];
        half_vector last = {0};
        for (int v = 0; v < full; v++) weights[v] = load(w + v * LANES);
        if (half) last = *(const unaligned_half *)(w + full * LANES);
        for (int r = 0; r < rows; r++) {
            float value = x[r * x_row];
            for (int v = 0; v < full; v++) sums[r][v] += value * weights[v];
            if (half) halves[r] += value * last;
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < full; v++) store(out + r * out_row + v * LANES, sums[r][v]);
        if (half) *(unaligned_half *)(out + r * out_row + full * LANES) = halves[r];
    }
}

#define CASE(r, eighths) case 8 * (eighths - 1) + r - 1: product(r, (eighths) / 2, (eighths) % 2, add, depth, x, x_row, x_step, w, w_step, out, out_row); break;
#define ROWS6(e) CASE(1, e) CASE(2, e) CASE(3, e) CASE(4, e) CASE(5, e) CASE(6, e)
#define ROWS8(e) ROWS6(e) CASE(7, e) CASE(8, e)
#define ALL_CASES ROWS8(1) ROWS8(2) ROWS8(3) ROWS8(4) ROWS8(5) ROWS8(6) ROWS6(7) ROWS6(8)
static void product_of(int64_t rows, int64_t eighths, int64_t depth, const float *x, int64_t x_row, int64_t x_step, const float *w, int64_t w_step,
                       float *out, int64_t out_row) {
    const int add = 0;
    switch (8 * (eighths - 1) + rows - 1) { ALL_CASES }
}
static void sum_of(int64_t rows, int64_t eighths, int64_t depth, const float *x, int64_t x_row, int64_t x_step, const float *w, int64_t w_step,
                   float *out, int64_t out_row) {
    const int add = 1;
    switch (8 * (eighths - 1) + rows - 1) { ALL_CASES }
}

/* The same for any number of rows and columns: in panels of as many columns as registers hold. */
INLINE void products(const int add, int64_t rows, int64_t columns, int64_t depth, const float *x, int64_t x_row, int64_t x_step,
                     const float *w, int64_t w_step, float *out, int64_t out_row) {
    int64_t eighths = (columns + 7) / 8, panels = (eighths + 7) / 8, width = (eighths + panels - 1) / panels;
    for (int64_t first = 0; first < eighths; first += width) {
        int64_t now = smaller(width, eighths - first), at_once = now > 6 ? 6 : 8;
        for (int64_t row = 0; row < rows; row += at_once)
            (add ? sum_of : product_of)(smaller(at_once, rows - row), now, depth, x + row * x_row, x_row, x_step, w + first * 8, w_step,
                                        out + row * out_row + first * 8, out_row);
    }
}

/* ---- tiles ---- */

struct tiles { int64_t high, wide, all; };     /* of an image; of all images */

static int64_t outputs(int64_t length, const struct shape *s) { return length + 2 * s->padding - 2; }

static struct tiles tiles_of(const struct shape *s, int64_t images) {
    int64_t high = (outputs(s->height, s) + 1) / 2, wide = (outputs(s->width, s) + 1) / 2;
    return (struct tiles){high, wide, images * high * wide};
}

static int64_t at_once(const struct shape *s) {
    int64_t tiles = FLOATS / (VALUES * (rounded(s->channels_in) + rounded(s->channels_out))) / SUMMED * SUMMED;
    return smaller(larger(tiles, SUMMED), MOST_TILES);
}

/* Floats from one of the VALUES of the first tile to the next: not a power of two, whose lines would share a place in the cache. */
static int64_t slice_of(int64_t tiles, int64_t row) { return tiles * row + LANES; }

/* The `side` x `side` pixels from (y, x) on of a channels-last image; those outside of it are `none`. */
INLINE void pixels(const int side, const float *image, int64_t y, int64_t x, int64_t height, int64_t width, int64_t channels, const float *none,
                   const float **from) {
    for (int64_t i = 0; i < side; i++)
        for (int64_t j = 0; j < side; j++) {
            int inside = y + i >= 0 && y + i < height && x + j >= 0 && x + j < width;
            from[i * side + j] = inside ? image + ((y + i) * width + x + j) * channels : none;
        }
}

/* B' d B of tile by tile: [VALUES, most, padded channels] */
static void read_tiles(const struct shape *s, const float *maps, struct tiles t, int64_t first, int64_t many, int64_t most, const float *none, float *out) {
    int64_t channels = s->channels_in, row = rounded(channels), slice = slice_of(most, row);
    for (int64_t n = 0; n < many; n++) {
        const float *from[16];
        int64_t tile = first + n, image = tile / (t.high * t.wide), place = tile % (t.high * t.wide);
        pixels(4, maps + image * s->height * s->width * channels, place / t.wide * 2 - s->padding, place % t.wide * 2 - s->padding,
               s->height, s->width, channels, none, from);
        for (int64_t block = 0; block < channels; block += LANES) {
            int64_t c = smaller(block, channels - LANES);
            vector a[4][4];
            for (int j = 0; j < 4; j++) {
                vector d0 = load(from[j] + c), d1 = load(from[4 + j] + c), d2 = load(from[8 + j] + c), d3 = load(from[12 + j] + c);
                a[0][j] = d0 - d2, a[1][j] = d1 + d2, a[2][j] = d2 - d1, a[3][j] = d1 - d3;
            }
            float *to = out + n * row + c;
            for (int i = 0; i < 4; i++, to += 4 * slice) {
                store(to, a[i][0] - a[i][2]);
                store(to + slice, a[i][1] + a[i][2]);
                store(to + 2 * slice, a[i][2] - a[i][1]);
                store(to + 3 * slice, a[i][1] - a[i][3]);
            }
        }
    }
}

/* A' m A, into the image */
static void write_tiles(const struct shape *s, const float *in, struct tiles t, int64_t first, int64_t many, int64_t most, float *maps) {
    int64_t channels = s->channels_out, row = rounded(channels), slice = slice_of(most, row), height = outputs(s->height, s), width = outputs(s->width, s);
    for (int64_t n = 0; n < many; n++) {
        int64_t tile = first + n, image = tile / (t.high * t.wide), place = tile % (t.high * t.wide), y = place / t.wide * 2, x = place % t.wide * 2;
        float *to = maps + ((image * height + y) * width + x) * channels;
        int down = y + 1 < height, right = x + 1 < width;
        for (int64_t block = 0; block < channels; block += LANES) {
            int64_t c = smaller(block, channels - LANES);
            vector a[2][4];
            for (int j = 0; j < 4; j++) {
                const float *from = in + n * row + c + j * slice;
                vector m0 = load(from), m1 = load(from + 4 * slice), m2 = load(from + 8 * slice), m3 = load(from + 12 * slice);
                a[0][j] = m0 + m1 + m2, a[1][j] = m1 - m2 - m3;
            }
            vector bias = s->bias ? load(s->bias + c) : (vector){0};
            store(to + c, a[0][0] + a[0][1] + a[0][2] + bias);
            if (right) store(to + channels + c, a[0][1] - a[0][2] - a[0][3] + bias);
            if (down) store(to + width * channels + c, a[1][0] + a[1][1] + a[1][2] + bias);
            if (down && right) store(to + (width + 1) * channels + c, a[1][1] - a[1][2] - a[1][3] + bias);
        }
    }
}

/* A g A' of the output's gradient: [VALUES, most, padded channels] */
static void read_gradients(const struct shape *s, const float *maps, struct tiles t, int64_t first, int64_t many, int64_t most, const float *none, float *out) {
    int64_t channels = s->channels_out, row = rounded(channels), slice = slice_of(most, row), height = outputs(s->height, s), width = outputs(s->width, s);
    for (int64_t n = 0; n < many; n++) {
        const float *from[4];
        int64_t tile = first + n, image = tile / (t.high * t.wide), place = tile % (t.high * t.wide);
        pixels(2, maps + image * height * width * channels, place / t.wide * 2, place % t.wide * 2, height, width, channels, none, from);
        for (int64_t block = 0; block < channels; block += LANES) {
            int64_t c = smaller(block, channels - LANES);
            vector a[4][2];
            for (int j = 0; j < 2; j++) {
                vector g0 = load(from[j] + c), g1 = load(from[2 + j] + c);
                a[0][j] = g0, a[1][j] = g0 + g1, a[2][j] = g0 - g1, a[3][j] = -g1;
            }
            float *to = out + n * row + c;
            for (int i = 0; i < 4; i++, to += 4 * slice) {
                store(to, a[i][0]);
                store(to + slice, a[i][0] + a[i][1]);
                store(to + 2 * slice, a[i][0] - a[i][1]);
                store(to + 3 * slice, -a[i][1]);
            }
        }
    }
}

/* ---- what is called; 1 if memory lacks ---- */

/* out [images, height out, width out, channels out] of maps [images, height, width, channels in] and transformed weights
   [VALUES, channels in, padded channels out] */
int convolve(const struct shape *s, int64_t images, const float *maps, const float *weights, float *out) {
    struct tiles t = tiles_of(s, images);
    int64_t most = at_once(s), in = rounded(s->channels_in), to = rounded(s->channels_out), slice_in = slice_of(most, in), slice_out = slice_of(most, to);
    float *tile = allocate(VALUES * (slice_in + slice_out) + in);
    if (!tile) return 1;
    float *sums = tile + VALUES * slice_in, *none = sums + VALUES * slice_out;
    memset(none, 0, in * sizeof(float));
    for (int64_t first = 0; first < t.all; first += most) {
        int64_t many = smaller(most, t.all - first);
        read_tiles(s, maps, t, first, many, most, none, tile);
        for (int64_t v = 0; v < VALUES; v++)
            products(0, many, s->channels_out, s->channels_in, tile + v * slice_in, in, 1, weights + v * s->channels_in * to, to, sums + v * slice_out, to);
        write_tiles(s, sums, t, first, many, most, out);
    }
    free(tile);
    return 0;
}

/* The gradient of the transformed weights, from that of the output. */
int weights_gradient(const struct shape *s, int64_t images, const float *maps, const float *gradients, float *out) {
    struct tiles t = tiles_of(s, images);
    int64_t most = at_once(s), in = rounded(s->channels_in), to = rounded(s->channels_out), slice_in = slice_of(most, in), slice_out = slice_of(most, to), floats = VALUES * (slice_in + slice_out) + larger(in, to);
    float *tile = allocate(floats);
    if (!tile) return 1;
    float *tile_out = tile + VALUES * slice_in, *none = tile_out + VALUES * slice_out;
    memset(tile, 0, floats * sizeof(float));
    memset(out, 0, VALUES * s->channels_in * to * sizeof(float));
    for (int64_t first = 0; first < t.all; first += most) {
        int64_t many = smaller(most, t.all - first);
        read_tiles(s, maps, t, first, many, most, none, tile);
        read_gradients(s, gradients, t, first, many, most, none, tile_out);
        for (int64_t v = 0; v < VALUES; v++)
            products(1, s->channels_in, s->channels_out, many, tile + v * slice_in, 1, in, tile_out + v * slice_out, to, out + v * s->channels_in * to, to);
    }
    free(tile);
    return 0;
}
