/* Maxima over blocks of neighbouring channels and where they lie, in one pass over the maps; float32. See maxima.py. */

#include <stdint.h>

static inline __attribute__((always_inline)) void maxima(const int64_t block, int64_t blocks, const float *maps, float *values, int64_t *places) {
    for (int64_t i = 0; i < blocks; i++, maps += block) {
        float value = maps[0];
        int64_t place = 0;
        for (int64_t k = 1; k < block; k++) {
            int greater = maps[k] > value;
            value = greater ? maps[k] : value;
            place = greater ? k : place;
        }
        values[i] = value;
        places[i] = place;
    }
}

/* values, places [blocks] of maps [blocks, block] */
void block_maxima(int64_t block, int64_t blocks, const float *maps, float *values, int64_t *places) {
    switch (block) {
        case 2: maxima(2, blocks, maps, values, places); break;
        case 4: maxima(4, blocks, maps, values, places); break;
        case 8: maxima(8, blocks, maps, values, places); break;
        case 16: maxima(16, blocks, maps, values, places); break;
        default: maxima(block, blocks, maps, values, places);
    }
}
