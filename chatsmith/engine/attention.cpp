// Attention of one query per row, fp32 or bf16, on a CPU. engine/attention.py compiles and calls it.
//
// torch's own kernel works on blocks of queries. With a single one per row it spends most of its time around the
// arithmetic, and reads the keys of the longest row for every row; this one reads what a row may attend to, once.

#include <cmath>
#include <cstdint>
#include <cstring>

constexpr int LANES = 16;
using Floats = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));

struct Shape {  // strides count elements; what belongs to one token lies side by side
    int64_t rows, heads, key_heads, length, width, value_width;
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

static void store(float* to, Floats lanes) { memcpy(to, &lanes, sizeof lanes); }

static void store(uint16_t* to, Floats lanes) {  // rounds to the nearest, ties to even
    Words words = (Words)lanes;
    words += 0x7fff + ((words >> 16) & 1);
    Halves rounded = __builtin_convertvector(words >> 16, Halves);
    memcpy(to, &rounded, sizeof rounded);
}

static float sum(Floats lanes) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += lanes[i];
    return total;
}

// `p` has room for a number per token.
template <typename T>
static inline __attribute__((always_inline)) void attend(const T* query, const T* keys, const T* values,
                                                         const bool* allowed, T* output, float* p, const Shape& s,
                                                         int64_t width, int64_t value_width, float scale) {
    Floats q[width / LANES], mean[value_width / LANES];
    for (int i = 0; i < width / LANES; i++) q[i] = load(query + LANES * i) * scale;
    float largest = -INFINITY, total = 0;
    for (int64_t t = 0; t < s.length; t++) {
        if (!allowed[t]) continue;
        const T* key = keys + t * s.key_token;
        Floats products = {};
        for (int i = 0; i < width / LANES; i++) {
            __builtin_prefetch(values + t * s.value_token + LANES * i);
            products += q[i] * load(key + LANES * i);
        }
        p[t] = sum(products);
        largest = p[t] > largest ? p[t] : largest;
    }
    for (int i = 0; i < value_width / LANES; i++) mean[i] = Floats{};
    for (int64_t t = 0; t < s.length; t++) {
        if (!allowed[t]) continue;
        const T* value = values + t * s.value_token;
        const float weight = std::exp(p[t] - largest);
        total += weight;
        for (int i = 0; i < value_width / LANES; i++) mean[i] += weight * load(value + LANES * i);
    }
    for (int i = 0; i < value_width / LANES; i++) store(output + LANES * i, mean[i] / total);
}

// queries [rows, heads, width], keys and values [rows, key_heads, length, width], allowed [rows, length], at least one
// of a row; output [rows, heads, value_width], dense.
template <typename T>
static void decode(const T* queries, const T* keys, const T* values, const bool* allowed, T* output, float scale,
                   const Shape& s) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < s.rows; row++) {
        float* p = new float[s.length];
        for (int64_t head = 0; head < s.heads; head++) {
            const int64_t shared = head / (s.heads / s.key_heads);
            const T* query = queries + row * s.query_row + head * s.query_head;
            const T* key = keys + row * s.key_row + shared * s.key_head;
            const T* value = values + row * s.value_row + shared * s.value_head;
            const bool* may = allowed + row * s.mask_row;
            T* out = output + (row * s.heads + head) * s.value_width;
            // widths that the compiler knows stay in registers
            if (s.width == 64 && s.value_width == 64)
                attend(query, key, value, may, out, p, s, 64, 64, scale);
            else if (s.width == 128 && s.value_width == 128)
                attend(query, key, value, may, out, p, s, 128, 128, scale);
            else
                attend(query, key, value, may, out, p, s, s.width, s.value_width, scale);
        }
        delete[] p;
    }
}

extern "C" void decode_float32(const float* queries, const float* keys, const float* values, const bool* allowed,
                               float* output, float scale, const Shape* shape) {
    decode(queries, keys, values, allowed, output, scale, *shape);
}

extern "C" void decode_bfloat16(const uint16_t* queries, const uint16_t* keys, const uint16_t* values,
                                const bool* allowed, uint16_t* output, float scale, const Shape* shape) {
    decode(queries, keys, values, allowed, output, scale, *shape);
}
