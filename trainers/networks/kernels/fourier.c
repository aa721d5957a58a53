/* Convolutions between regular fields of a group of quarter turns and flips, in the Fourier basis of the group; float32.

   At every place and for every tap of the filter, the values that the group's elements exchange (one of each channel of a
   field, each at its turned tap) are transformed to the irreducible representations of the group. These do not mix, so
   that the products with the weights are 2.7 (quarter turns) to 5.3 times (with flips) fewer than those of the convolution
   with the expanded weight. The transformed values of a tile of places stay in the cache. See fourier.py for the formulas. */

#include "fourier.h"

/* ---- the convolution ---- */

/* out [rows, TILE] += weights [depth, rows] x tile [depth, TILE], of as many vectors */
INLINE void product(const int rows, const int vectors, int64_t depth, const float *weights, const float *tile, float *out) {
    vector sums[ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = *(vector *)(out + r * TILE + v * LANES);
    for (int64_t k = 0; k < depth; k++) {
        vector x[VECTORS];
        for (int v = 0; v < vectors; v++) x[v] = *(const vector *)(tile + k * TILE + v * LANES);
        for (int r = 0; r < rows; r++) {
            vector weight = weights[k * rows + r] - (vector){0};
            for (int v = 0; v < vectors; v++) sums[r][v] += weight * x[v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) *(vector *)(out + r * TILE + v * LANES) = sums[r][v];
}

#define EACH(r, v) case 4 * (r) + (v): product(r, v, depth, weights, tile, out); break;
#define ALL(r) EACH(r, 1) EACH(r, 2) EACH(r, 3)
/* The same for any number of rows. */
static void products(int64_t rows, int64_t vectors, int64_t depth, const float *weights, const float *tile, float *out) {
    while (rows > 0) {
        int64_t now = smaller(rows, ROWS);
        switch (4 * now + vectors) { ALL(1) ALL(2) ALL(3) ALL(4) ALL(5) ALL(6) ALL(7) ALL(8) }
        weights += now * depth, out += now * TILE, rows -= now;
    }
}

/* The spectra in the order in which `products` reads them: [fields at once][block][rows at once][depth][row]. */
INLINE void arrange(const int kind, const struct layer *l, int64_t size, int64_t fields_at_once, const float *spectra, float *weights) {
    for (int64_t first = 0; first < l->fields_in; first += fields_at_once) {
        int64_t fields = smaller(l->fields_in - first, fields_at_once);
        const float *spectrum = spectra;
        for (int b = 0; b < blocks(kind); b++) {
            if (shared(kind, b) != b) continue;
            int64_t rows = l->fields_out * dimension(kind, b), all = l->fields_in * size * dimension(kind, b);
            int64_t start = first * size * dimension(kind, b), depth = fields * size * dimension(kind, b);
            for (int64_t row = 0; row < rows; row += ROWS) {
                int64_t now = smaller(rows - row, ROWS);
                for (int64_t k = 0; k < depth; k++)
                    for (int64_t r = 0; r < now; r++) *weights++ = spectrum[(row + r) * all + start + k];
            }
            spectrum += rows * all;
        }
    }
}

INLINE int convolve_kind(const int kind, const struct layer *l, int64_t images, const float *maps, const float *spectra, float *out) {
    const int order = order_of(kind);
    int64_t size = l->kernel * l->kernel, channels_in = l->fields_in * order, channels_out = l->fields_out * order;
    int64_t height = outputs(l->height, l), width = outputs(l->width, l), fields_at_once = at_once(l, TILE, TILE_FLOATS);
    struct planes p = input_planes(l);
    int64_t places = (height - 1) * p.pitch + width;
    int64_t padded = (channels_in * p.plane + 2 * TILE) / LANES * LANES, values = fields_at_once * order * size * TILE;
    int64_t *taps = tap_offsets(l, p);
    float *planar = allocate(padded + values + 2 * channels_out * TILE + l->fields_in * l->fields_out * size * LARGEST_ORDER);
    if (!taps || !planar) { free(taps); free(planar); return 1; }
    float *tile = planar + padded, *sums = tile + values, *rows = sums + channels_out * TILE, *weights = rows + channels_out * TILE;
    struct fields input = {l->channels_in, taps, size, p.plane};
    memset(planar, 0, padded * sizeof(float));
    arrange(kind, l, size, fields_at_once, spectra, weights);
    for (int64_t image = 0; image < images; image++) {
        pack(maps + image * l->height * l->width * channels_in, l->height, l->width, channels_in, p, planar);
        for (int64_t place = 0; place < places; place += TILE) {
            int64_t many = smaller(places - place, TILE), vectors = (many + LANES - 1) / LANES;
            const float *weight = weights, *last = weights;
            memset(sums, 0, channels_out * TILE * sizeof(float));
            for (int64_t first = 0; first < l->fields_in; first += fields_at_once) {
                int64_t fields = smaller(l->fields_in - first, fields_at_once), starts[MOST_BLOCKS], start = 0;
                for (int b = 0; b < blocks(kind); start += fields * size * dimension(kind, b), b++) starts[b] = start;
                gather(kind, &input, planar + place, first, fields, vectors, TILE, starts, tile);
                float *into = sums;
                for (int b = 0; b < blocks(kind); b++) {
                    int64_t depth = fields * size * dimension(kind, b), many_rows = l->fields_out * dimension(kind, b);
                    if (shared(kind, b) == b) last = weight, weight += depth * many_rows;
                    products(many_rows, vectors, depth, last, tile + starts[b] * TILE, into);
                    into += many_rows * TILE;
                }
            }
            for (int64_t field = 0; field < l->fields_out; field++)
                for (int64_t v = 0; v < vectors; v++) {
                    vector y[LARGEST_ORDER], x[LARGEST_ORDER];
                    const float *from = sums;
                    for (int b = 0, e = 0; b < blocks(kind); from += l->fields_out * dimension(kind, b) * TILE, b++)
                        for (int d = 0; d < dimension(kind, b); d++, e++)
                            y[e] = *(const vector *)(from + (field * dimension(kind, b) + d) * TILE + v * LANES);
                    transposed_transform(kind, y, x);
                    for (int e = 0; e < order; e++) {
                        int32_t channel = l->channels_out[field * order + e];
                        *(vector *)(rows + channel * TILE + v * LANES) = l->bias ? x[e] + l->bias[channel] : x[e];
                    }
                }
            unpack(rows, many, place, p.pitch, width, channels_out, out + image * height * width * channels_out);
        }
    }
    free(taps);
    free(planar);
    return 0;
}

/* ---- the gradient of the weights ---- */

/* Three vectors summed to 4 lanes each, added to 16 floats, of which the last 4 stay what they are. */
INLINE void add_folded(vector a, vector b, vector c, float *out) {
    const vector none = {0};
    vector ab = SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
              + SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    vector cd = SHUFFLE(c, none, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
              + SHUFFLE(c, none, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    *(vector *)out += SHUFFLE(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
                    + SHUFFLE(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}

/* out [rows, depth / COLUMNS, 16] += gradients [rows, LONG_TILE] x values [COLUMNS, LONG_TILE]', as 4 parts of each sum */
INLINE void correlation(const int rows, int64_t vectors, int64_t depth, const float *gradients, const float *values, float *out) {
    vector sums[ROWS][COLUMNS];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = (vector){0};
    for (int64_t v = 0; v < vectors; v++) {
        vector x[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) x[c] = *(const vector *)(values + c * LONG_TILE + v * LANES);
        for (int r = 0; r < rows; r++) {
            vector gradient = *(const vector *)(gradients + r * LONG_TILE + v * LANES);
            for (int c = 0; c < COLUMNS; c++) sums[r][c] += gradient * x[c];
        }
    }
    for (int r = 0; r < rows; r++) add_folded(sums[r][0], sums[r][1], sums[r][2], out + r * (depth / COLUMNS * 16));
}

#define SOME(r) case r: correlation(r, vectors, depth, g, x, to); break;
/* The same for any number of rows, and a depth that is a multiple of COLUMNS. */
static void correlations(int64_t rows, int64_t vectors, int64_t depth, const float *gradients, const float *values, float *out) {
    for (int64_t row = 0; row < rows; row += ROWS)
        for (int64_t k = 0; k < depth; k += COLUMNS) {
            const float *g = gradients + row * LONG_TILE, *x = values + k * LONG_TILE;
            float *to = out + (row * (depth / COLUMNS) + k / COLUMNS) * 16;
            switch (smaller(rows - row, ROWS)) { SOME(1) SOME(2) SOME(3) SOME(4) SOME(5) SOME(6) SOME(7) SOME(8) }
        }
}

static int64_t rounded(int64_t depth) { return (depth + COLUMNS - 1) / COLUMNS * COLUMNS; }

INLINE int spectra_gradient_kind(const int kind, const struct layer *l, int64_t images, const float *maps, const float *gradients, float *out) {
    const int order = order_of(kind);
    int64_t size = l->kernel * l->kernel, channels_in = l->fields_in * order, channels_out = l->fields_out * order;
    int64_t height = outputs(l->height, l), width = outputs(l->width, l), fields_at_once = at_once(l, LONG_TILE, LONG_TILE_FLOATS);
    struct planes p = input_planes(l), q = planes(height, 1, 0, p.pitch);
    int64_t places = (height - 1) * p.pitch + width, nowhere[LARGEST_ORDER] = {0};
    int64_t of_image = (smaller(places, LONG_TILE) + LANES - 1) / LANES;        /* vectors; small images share a tile */
    int64_t together = places > LONG_TILE ? 1 : larger(1, smaller(images, LONG_TILE / (of_image * LANES)));
    int64_t image_in = channels_in * p.plane, image_out = channels_out * q.plane;
    int64_t padded_in = (together * image_in + 2 * LONG_TILE) / LANES * LANES, padded_out = (together * image_out + LONG_TILE) / LANES * LANES;
    int64_t values = 0, sums = 0;      /* floats of a tile and of the sums */
    for (int b = 0; b < blocks(kind); b++) {
        int64_t d = dimension(kind, b), rows = l->fields_out * d;
        values += rounded(fields_at_once * size * d) * LONG_TILE;
        if (shared(kind, b) != b) continue;
        for (int64_t first = 0; first < l->fields_in; first += fields_at_once)
            sums += rows * rounded(smaller(l->fields_in - first, fields_at_once) * size * d) / COLUMNS * 16;
    }
    int64_t floats = padded_in + padded_out + values + channels_out * LONG_TILE + sums;
    int64_t *taps = tap_offsets(l, p);
    float *planar = allocate(floats);
    if (!taps || !planar) { free(taps); free(planar); return 1; }
    float *planar_out = planar + padded_in, *tile = planar_out + padded_out, *tile_out = tile + values, *sum = tile_out + channels_out * LONG_TILE;
    struct fields input = {l->channels_in, taps, size, p.plane}, output = {l->channels_out, nowhere, 1, q.plane};
    int64_t starts_out[MOST_BLOCKS], start = 0;
    for (int b = 0; b < blocks(kind); start += l->fields_out * dimension(kind, b), b++) starts_out[b] = start;
    memset(planar, 0, floats * sizeof(float));
    for (int64_t image = 0; image < images; image += together) {
        int64_t many = smaller(images - image, together);
        for (int64_t i = 0; i < many; i++) {
            pack(maps + (image + i) * l->height * l->width * channels_in, l->height, l->width, channels_in, p, planar + i * image_in);
            pack(gradients + (image + i) * height * width * channels_out, height, width, channels_out, q, planar_out + i * image_out);
        }
        for (int64_t place = 0; place < places; place += LONG_TILE) {
            int64_t vectors = (smaller(places - place, LONG_TILE) + LANES - 1) / LANES;
            float *to = sum, *last = sum;
            for (int64_t i = 0; i < many; i++)
                gather(kind, &output, planar_out + i * image_out + place, 0, l->fields_out, vectors, LONG_TILE, starts_out, tile_out + i * vectors * LANES);
            for (int64_t first = 0; first < l->fields_in; first += fields_at_once) {
                int64_t fields = smaller(l->fields_in - first, fields_at_once), starts[MOST_BLOCKS], start = 0;
                for (int b = 0; b < blocks(kind); start += rounded(fields * size * dimension(kind, b)), b++) starts[b] = start;
                for (int64_t i = 0; i < many; i++)
                    gather(kind, &input, planar + i * image_in + place, first, fields, vectors, LONG_TILE, starts, tile + i * vectors * LANES);
                for (int b = 0; b < blocks(kind); b++) {
                    int64_t depth = rounded(fields * size * dimension(kind, b)), rows = l->fields_out * dimension(kind, b);
                    if (shared(kind, b) == b) last = to, to += rows * (depth / COLUMNS) * 16;
                    correlations(rows, many * vectors, depth, tile_out + starts_out[b] * LONG_TILE, tile + starts[b] * LONG_TILE, last);
                }
            }
        }
    }
    for (int64_t first = 0; first < l->fields_in; first += fields_at_once) {
        int64_t fields = smaller(l->fields_in - first, fields_at_once);
        float *to = out;
        for (int b = 0; b < blocks(kind); b++) {
            if (shared(kind, b) != b) continue;
            int64_t d = dimension(kind, b), rows = l->fields_out * d, depth = fields * size * d;
            for (int64_t row = 0; row < rows; row++, sum += rounded(depth) / COLUMNS * 16)
                for (int64_t k = 0; k < depth; k++) {
                    const float *lanes = sum + k / COLUMNS * 16 + k % COLUMNS * 4;
                    to[(row * l->fields_in + first) * size * d + k] = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
                }
            to += rows * l->fields_in * size * d;
        }
    }
    free(taps);
    free(planar);
    return 0;
}

/* ---- what is called; 1 if memory lacks ---- */

#define OF_KIND(function, ...) \
    switch (l->kind) { \
        case C1: return function(C1, __VA_ARGS__); \
        case C2: return function(C2, __VA_ARGS__); \
        case D2: return function(D2, __VA_ARGS__); \
        case C4: return function(C4, __VA_ARGS__); \
        default: return function(D4, __VA_ARGS__); \
    }

/* out [images, height out, width out, channels] of maps [images, height, width, channels] */
int convolve(const struct layer *l, int64_t images, const float *maps, const float *spectra, float *out) {
    OF_KIND(convolve_kind, l, images, maps, spectra, out)
}

/* The gradient of the spectra, from that of the output. */
int spectra_gradient(const struct layer *l, int64_t images, const float *maps, const float *gradients, float *out) {
    OF_KIND(spectra_gradient_kind, l, images, maps, gradients, out)
}
