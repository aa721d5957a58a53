/* Vectors of places, the Fourier transform of the group, maps as planes and tiles of transformed values: what fourier.c works with. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16                /* floats of a vector register: AVX-512 */
#define VECTORS 3               /* vectors of a tile */
#define ROWS 8                  /* rows of a product that are kept in registers, VECTORS each */
#define COLUMNS 3               /* values whose sums with ROWS gradients are kept in registers */
#define TILE (LANES * VECTORS)  /* places */
#define LONG_TILE 256           /* places, where the gradient of the weights is summed */
#define TILE_FLOATS 6144        /* of a tile of transformed values: a part of the first cache */
#define LONG_TILE_FLOATS 40960  /* a part of the second */
#define LARGEST_ORDER 8
#define MOST_BLOCKS 6
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned_vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t indices __attribute__((vector_size(4 * LANES)));

enum kind { C1, C2, D2, C4, D4 };      /* C2: also a mirror alone */

struct layer {
    int64_t kind, order, fields_in, fields_out, height, width, kernel, stride, padding, dilation;
    const int32_t *channels_in, *channels_out;  /* [fields, order]: the channel of every element */
    const int32_t *taps;                        /* [order, kernel * kernel]: where an element moves a tap to */
    const float *bias;                          /* of the outgoing channels, or NULL */
};

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE vector load(const float *from) { return *(const unaligned_vector *)from; }
INLINE void store(float *to, vector value) { *(unaligned_vector *)to = value; }

/* ---- the Fourier transform of the group and its transpose, on vectors of places ---- */

INLINE void transform(const int kind, const vector *x, vector *y) {
    if (kind == C1) { y[0] = x[0]; return; }
    if (kind == C2) { y[0] = x[0] + x[1]; y[1] = x[0] - x[1]; return; }
    if (kind == D2) {
        vector a = x[0] + x[1], b = x[0] - x[1], c = x[2] + x[3], d = x[2] - x[3];
        y[0] = a + c; y[1] = a - c; y[2] = b + d; y[3] = b - d;
        return;
    }
    vector even = x[0] + x[2], odd = x[1] + x[3], a = x[0] - x[2], b = x[1] - x[3];
    if (kind == C4) { y[0] = even + odd; y[1] = even - odd; y[2] = a; y[3] = -b; return; }
    vector even_m = x[4] + x[6], odd_m = x[5] + x[7], c = x[4] - x[6], d = x[5] - x[7];
    vector all = even + odd, all_m = even_m + odd_m, turn = even - odd, turn_m = even_m - odd_m;
    y[0] = all + all_m; y[1] = all - all_m; y[2] = turn + turn_m; y[3] = turn - turn_m;
    y[4] = a + c; y[5] = d - b; y[6] = b + d; y[7] = a - c;
}

INLINE void transposed_transform(const int kind, const vector *y, vector *x) {
    if (kind == C1) { x[0] = y[0]; return; }
    if (kind == C2) { x[0] = y[0] + y[1]; x[1] = y[0] - y[1]; return; }
    if (kind == D2) {
        vector a = y[0] + y[1], c = y[0] - y[1], b = y[2] + y[3], d = y[2] - y[3];
        x[0] = a + b; x[1] = a - b; x[2] = c + d; x[3] = c - d;
        return;
    }
    if (kind == C4) {
        vector even = y[0] + y[1], odd = y[0] - y[1];
        x[0] = even + y[2]; x[2] = even - y[2]; x[1] = odd - y[3]; x[3] = odd + y[3];
        return;
    }
    vector all = y[0] + y[1], all_m = y[0] - y[1], turn = y[2] + y[3], turn_m = y[2] - y[3];
    vector even = all + turn, odd = all - turn, even_m = all_m + turn_m, odd_m = all_m - turn_m;
    vector a = y[4] + y[7], b = y[6] - y[5], c = y[4] - y[7], d = y[5] + y[6];
    x[0] = even + a; x[2] = even - a; x[1] = odd + b; x[3] = odd - b;
    x[4] = even_m + c; x[6] = even_m - c; x[5] = odd_m + d; x[7] = odd_m - d;
}

INLINE int order_of(const int kind) { return kind == C1 ? 1 : kind == C2 ? 2 : kind == D4 ? 8 : 4; }

/* The blocks that do not mix, in the order of the transformed values: how many of them, the dimension of each and which weights it takes. */
INLINE int blocks(const int kind) { return kind == C1 ? 1 : kind == C2 ? 2 : kind == D2 ? 4 : kind == C4 ? 3 : 6; }
INLINE int dimension(const int kind, int block) { return (kind == C4 && block == 2) || block >= 4 ? 2 : 1; }
INLINE int shared(const int kind, int block) { return kind == D4 && block == 5 ? 4 : block; }

/* ---- from channels-last images to one plane per channel, and back ---- */

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (indices){__VA_ARGS__})
#endif
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

/* Rounds of interleaving the first half of the rows with the second transpose a square. */
INLINE void transpose(vector *rows) {
    vector other[LANES];
    for (int round = 1; round < LANES; round *= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            other[2 * i] = SHUFFLE(rows[i], rows[i + LANES / 2], LOW);
            other[2 * i + 1] = SHUFFLE(rows[i], rows[i + LANES / 2], HIGH);
        }
        for (int i = 0; i < LANES; i++) rows[i] = other[i];
    }
}

/* A padded image whose rows and columns are dealt out to stride x stride phases: what a filter reads then lies together for all places. */
struct planes { int64_t stride, padding, pitch, phase, plane; };

static struct planes planes(int64_t height, int64_t stride, int64_t padding, int64_t pitch) {
    int64_t phase = (height + 2 * padding + stride - 1) / stride * pitch + padding + LANES;
    return (struct planes){stride, padding, pitch, phase, stride * stride * phase};
}

/* Overruns each row by less than LANES zeros, which fall on padding, on rows still to come or behind the phase. */
static void pack(const float *image, int64_t height, int64_t width, int64_t channels, struct planes to, float *out) {
    for (int64_t y = 0; y < height; y++) {
        int64_t row = y + to.padding;
        for (int64_t phase = 0; phase < to.stride; phase++) {
            int64_t first = (phase - to.padding % to.stride + to.stride) % to.stride;
            float *line = out + (row % to.stride * to.stride + phase) * to.phase + row / to.stride * to.pitch + (first + to.padding) / to.stride;
            for (int64_t x = first; x < width; x += LANES * to.stride, line += LANES) {
                const float *pixel = image + (y * width + x) * channels;
                int64_t valid = (width - x + to.stride - 1) / to.stride, step = to.stride * channels;
                if (valid < 3 || channels < LANES) {
                    for (int64_t c = 0; c < channels; c++)
                        for (int64_t i = 0; i < LANES; i++) line[c * to.plane + i] = i < valid ? pixel[i * step + c] : 0;
                    continue;
                }
                for (int64_t block = 0; block < channels; block += LANES) {
                    int64_t c = smaller(block, channels - LANES);
                    vector square[LANES];
                    if (valid >= LANES)
                        for (int i = 0; i < LANES; i++) square[i] = load(pixel + i * step + c);
                    else
                        for (int i = 0; i < LANES; i++) square[i] = i < valid ? load(pixel + i * step + c) : (vector){0};
                    transpose(square);
                    for (int i = 0; i < LANES; i++) store(line + (c + i) * to.plane, square[i]);
                }
            }
        }
    }
}

/* Stores `many` places from number `place` on, whose rows are `pitch` apart, where they lie in the image; others are skipped. */
static void unpack(const float *rows, int64_t many, int64_t place, int64_t pitch, int64_t width, int64_t channels, float *image) {
    int64_t y = place / pitch, x = place % pitch;
    for (int64_t start = 0; start < many; start += LANES) {
        float *pixels[LANES];
        for (int i = 0; i < LANES; i++) {
            pixels[i] = start + i < many && x < width ? image + (y * width + x) * channels : NULL;
            if (++x == pitch) { x = 0; y++; }
        }
        for (int64_t c = 0; channels < LANES && c < channels; c++)
            for (int i = 0; i < LANES; i++)
                if (pixels[i]) pixels[i][c] = rows[c * TILE + start + i];
        for (int64_t block = 0; channels >= LANES && block < channels; block += LANES) {
            int64_t c = smaller(block, channels - LANES);
            vector square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = *(const vector *)(rows + (c + i) * TILE + start);
            transpose(square);
            for (int i = 0; i < LANES; i++)
                if (pixels[i]) store(pixels[i] + c, square[i]);
        }
    }
}

/* ---- tiles of transformed values: [block][field, tap, dimension][length places] ---- */

struct fields { const int32_t *channels; const int64_t *taps; int64_t size, plane; };

INLINE void gather(const int kind, const struct fields *of, const float *place, int64_t first, int64_t fields, int64_t vectors, int64_t length,
                   const int64_t *starts, float *tile) {
    const int order = order_of(kind);
    for (int64_t field = 0; field < fields; field++) {
        const int32_t *channels = of->channels + (first + field) * order;
        for (int64_t tap = 0; tap < of->size; tap++) {
            const float *from[LARGEST_ORDER];
            float *to[LARGEST_ORDER];
            for (int e = 0; e < order; e++) from[e] = place + channels[e] * of->plane + of->taps[e * of->size + tap];
            for (int block = 0, e = 0; block < blocks(kind); block++)
                for (int d = 0; d < dimension(kind, block); d++, e++)
                    to[e] = tile + (starts[block] + (field * of->size + tap) * dimension(kind, block) + d) * length;
            for (int64_t v = 0; v < vectors; v++) {
                vector x[LARGEST_ORDER], y[LARGEST_ORDER];
                for (int e = 0; e < order; e++) x[e] = load(from[e] + v * LANES);
                transform(kind, x, y);
                for (int e = 0; e < order; e++) *(vector *)(to[e] + v * LANES) = y[e];
            }
        }
    }
}

static int64_t *tap_offsets(const struct layer *l, struct planes p) {
    int64_t size = l->kernel * l->kernel, *offsets = malloc(l->order * size * sizeof *offsets);
    for (int64_t i = 0; offsets && i < l->order * size; i++) {
        int64_t y = l->taps[i] / l->kernel * l->dilation, x = l->taps[i] % l->kernel * l->dilation;
        offsets[i] = (y % p.stride * p.stride + x % p.stride) * p.phase + y / p.stride * p.pitch + x / p.stride;
    }
    return offsets;
}

static int64_t outputs(int64_t size, const struct layer *l) { return (size + 2 * l->padding - l->dilation * (l->kernel - 1) - 1) / l->stride + 1; }

/* Of stride 1, the zeros to the right of a row are those to the left of the next. */
static struct planes input_planes(const struct layer *l) {
    int64_t pitch = l->stride == 1 ? larger(l->width + l->padding, outputs(l->width, l)) : (l->width + 2 * l->padding + l->stride - 1) / l->stride;
    return planes(l->height, l->stride, l->padding, pitch);
}

/* Fields whose transformed values are made and used at once: as many as fit, at least one. */
static int64_t at_once(const struct layer *l, int64_t length, int64_t floats) {
    int64_t fields = floats / (l->order * l->kernel * l->kernel * length);
    return fields < 1 ? 1 : smaller(fields, l->fields_in);
}

static float *allocate(int64_t floats) { return aligned_alloc(64, (floats + 15) / 16 * 16 * sizeof(float)); }
