// Attention of one query per row, fp32 or bf16, on a CPU. cpu/attention.py compiles and calls it.
//
// torch's own kernel works on blocks of queries. With a single one per row it spends most of its time around the
// arithmetic, and reads the keys of the longest row for every row; this one reads what a row may attend to, once.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// The compiler is told LANES. They are AVX2's 8: this waits for memory more than for arithmetic, and 16 gain nothing.
using Floats = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));

struct Sizes {  // strides count elements; what belongs to one token lies side by side
    int64_t rows, key_heads, group, length, width, value_width;
    int64_t mask_row, query_row, query_head, key_row, key_head, key_token, value_row, value_head, value_token;
};

static Floats load(const float* from) {
    Floats lanes;
    memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

static Floats load(const uint16_t* from) {  // bf16 is the upper half of fp32
    Halves lanes;
    memcpy(&lanes, from, sizeof lanes);
    return (Floats)(__builtin_convertvector(lanes, Words) << 16);
}

// fp32 in whose upper half stands the nearest bf16, the even one of two; for one number or many.
template <typename W>
static W rounded(W words) {
    return words + 0x7fff + ((words >> 16) & 1);
}

static void store(float* to, Floats lanes) { memcpy(to, &lanes, sizeof lanes); }

static void store(uint16_t* to, Floats lanes) {
    const Halves halves = __builtin_convertvector(rounded((Words)lanes) >> 16, Halves);
    memcpy(to, &halves, sizeof halves);
}

// A weight as torch's kernel multiplies it with values of that type: training and generation then round alike.
static float as_factor(float weight, const float*) { return weight; }

static float as_factor(float weight, const uint16_t*) {
    uint32_t word;
    memcpy(&word, &weight, sizeof word);
    word = rounded(word) & 0xffff0000;
    memcpy(&weight, &word, sizeof word);
    return weight;
}

static float sum(Floats lanes) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += lanes[i];
    return total;
}

// The queries of the `group` heads that share keys and values. `weights` has room for a number per token and head.
template <typename T>
static inline __attribute__((always_inline)) void attend(const T* queries, const T* keys, const T* values,
                                                         const bool* allowed, T* output, float* weights, float scale,
                                                         const Sizes& s, int64_t group, int64_t width,
                                                         int64_t value_width) {
    const int64_t parts = width / LANES, value_parts = value_width / LANES;
    Floats query[group * parts], mean[group * value_parts], vector[parts > value_parts ? parts : value_parts];
    float largest[group], total[group];
    for (int64_t head = 0; head < group; head++) {
        for (int64_t i = 0; i < parts; i++)
            query[head * parts + i] = load(queries + head * s.query_head + LANES * i);
        for (int64_t i = 0; i < value_parts; i++) mean[head * value_parts + i] = Floats{};
        largest[head] = -INFINITY;
        total[head] = 0;
    }
    for (int64_t t = 0; t < s.length; t++) {
        if (!allowed[t]) continue;
        for (int64_t i = 0; i < value_parts; i++) __builtin_prefetch(values + t * s.value_token + LANES * i);
        for (int64_t i = 0; i < parts; i++) vector[i] = load(keys + t * s.key_token + LANES * i);
        for (int64_t head = 0; head < group; head++) {
            Floats products = {};
            for (int64_t i = 0; i < parts; i++) products += query[head * parts + i] * vector[i];
            const float score = scale * sum(products);
            weights[t * group + head] = score;
            largest[head] = score > largest[head] ? score : largest[head];
        }
    }
    for (int64_t t = 0; t < s.length; t++) {
        if (!allowed[t]) continue;
        for (int64_t i = 0; i < value_parts; i++) vector[i] = load(values + t * s.value_token + LANES * i);
        for (int64_t head = 0; head < group; head++) {
            const float weight = std::exp(weights[t * group + head] - largest[head]);
            const float factor = as_factor(weight, values);
            total[head] += weight;
            for (int64_t i = 0; i < value_parts; i++) mean[head * value_parts + i] += factor * vector[i];
        }
    }
    for (int64_t head = 0; head < group; head++)
        for (int64_t i = 0; i < value_parts; i++)
            store(output + head * value_width + LANES * i, mean[head * value_parts + i] / total[head]);
}

// queries [rows, key_heads * group, width], keys and values [rows, key_heads, length, width], allowed [rows, length], at
// least one of a row; output [rows, key_heads * group, value_width], dense.
template <typename T>
static void decode(const T* queries, const T* keys, const T* values, const bool* allowed, T* output, float scale,
                   const Sizes& s) {
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t row = 0; row < s.rows; row++) {
        for (int64_t head = 0; head < s.key_heads; head++) {
            std::vector<float> room(s.length * s.group);
            float* weights = room.data();
            const T* query = queries + row * s.query_row + head * s.group * s.query_head;
            const T* key = keys + row * s.key_row + head * s.key_head;
            const T* value = values + row * s.value_row + head * s.value_head;
            const bool* may = allowed + row * s.mask_row;
            T* out = output + (row * s.key_heads + head) * s.group * s.value_width;
            // numbers that the compiler knows stay in registers
            if (s.group == 1 && s.width == 64 && s.value_width == 64)
                attend(query, key, value, may, out, weights, scale, s, 1, 64, 64);
            else if (s.width == 64 && s.value_width == 64)
                attend(query, key, value, may, out, weights, scale, s, s.group, 64, 64);
            else if (s.width == 128 && s.value_width == 128)
                attend(query, key, value, may, out, weights, scale, s, s.group, 128, 128);
            else
                attend(query, key, value, may, out, weights, scale, s, s.group, s.width, s.value_width);
        }
    }
}

extern "C" void decode_float32(const float* queries, const float* keys, const float* values, const bool* allowed,
                               float* output, float scale, const Sizes* sizes) {
    decode(queries, keys, values, allowed, output, scale, *sizes);
}

extern "C" void decode_bfloat16(const uint16_t* queries, const uint16_t* keys, const uint16_t* values,
                                const bool* allowed, uint16_t* output, float scale, const Sizes* sizes) {
    decode(queries, keys, values, allowed, output, scale, *sizes);
}
