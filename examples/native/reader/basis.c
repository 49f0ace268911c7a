#include "basis.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hash.h"
#include "reading.h"

static const uint64_t GOLDEN = 0x9E3779B97F4A7C15u;

/* Projection */

static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static int32_t lanes(uint64_t z) {
    return (int32_t)((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48));
}

void project(uint64_t seed, text name, uint32_t u, uint32_t r, float *p) {
    uint64_t hash = 0xCBF29CE484222325u, key, entries = (uint64_t)u * r * r;
    float scale = 1.0f / sqrtf((float)r);
    for (uint64_t i = 0; i < name.size; i++) hash = (hash ^ name.at[i]) * 0x100000001B3u;
    key = mix(seed ^ hash);
    for (uint64_t c = 0; c < entries; c++) {
        int32_t s = 0;
        for (uint64_t step = 1; step <= 3; step++) s += lanes(mix(key + (3 * c + step) * GOLDEN));
        p[c] = (float)(s - 393210) / 65536.0f * scale;
    }
}

void sum_of_projections(const float *p, const float *v, uint32_t u, uint32_t r, float *out) {
    for (uint32_t entry = 0; entry < r * r; entry++) {
        double sum = 0;
        for (uint32_t i = 0; i < u; i++) sum += (double)v[i] * (double)p[i * r * r + entry];
        out[entry] = (float)sum;
    }
}

float read_f32(const uint8_t *at) {
    uint32_t bits = at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

const char *basis_r(const basis *b, uint32_t number, const float *values, float *out) {
    const module *m = b->modules + number;
    size_t size = (size_t)b->u * b->rank * b->rank;
    float *p = malloc(size * sizeof *p);
    if (!p) return "no memory";
    if (m->p.data)
        for (size_t i = 0; i < size; i++) p[i] = read_f32(m->p.data + 4 * i);
    else
        project(b->seed, m->name, b->u, b->rank, p);
    sum_of_projections(p, values + (size_t)m->group * b->u, b->u, b->rank, out);
    free(p);
    return NULL;
}

/* Hashes: numbers are little-endian, a text is its length and its bytes. */

static void add_number(sha256 *h, uint64_t value, int size) {
    uint8_t bytes[8];
    for (int i = 0; i < size; i++) bytes[i] = (uint8_t)(value >> 8 * i);
    sha256_add(h, bytes, (size_t)size);
}

static void add_text(sha256 *h, text t) {
    add_number(h, t.size, 4);
    sha256_add(h, t.at, t.size);
}

static void add_array(sha256 *h, const tensor *t) {
    add_number(h, t->type == 0 ? 4 : 2, 4);
    add_number(h, t->dimensions, 4);
    for (uint32_t i = 0; i < t->dimensions; i++) add_number(h, t->shape[i], 8);
    sha256_add(h, t->data, t->size);
}

static void compute_digest(basis *b) {
    sha256 whole;
    sha256_begin(&whole);
    sha256_add(&whole, "tinylora basis 1\n", 17);
    add_text(&whole, b->architecture);
    add_text(&whole, b->projection);
    add_text(&whole, b->factorization);
    add_number(&whole, b->rank, 4);
    add_number(&whole, b->u, 4);
    add_number(&whole, b->groups, 4);
    add_number(&whole, b->seed, 8);
    add_number(&whole, b->count, 4);
    for (uint32_t i = 0; i < b->count; i++) {
        const module *m = b->modules + i;
        uint8_t inner[32];
        sha256 h;
        sha256_begin(&h);
        add_text(&h, m->name);
        add_number(&h, m->group, 4);
        add_array(&h, &m->a);
        add_array(&h, &m->b);
        if (m->p.data) add_array(&h, &m->p);
        sha256_end(&h, inner);
        sha256_add(&whole, inner, 32);
    }
    sha256_end(&whole, b->digest);
}

const char *fingerprint(const basis *b, const gguf *base, uint8_t out[32]) {
    uint32_t type;
    cursor c = find_key(base, "general.architecture", &type);
    text architecture = take_text(&c);
    sha256 h;
    if (c.failed || type != STRING) return "the base has no architecture";
    sha256_begin(&h);
    sha256_add(&h, "tinylora base 1\n", 16);
    add_text(&h, architecture);
    for (uint32_t i = 0; i < b->count; i++) {
        tensor t;
        const char *error = find_tensor(base, b->modules[i].name, "", &t);
        uint64_t part;
        if (error) return error;
        part = t.size < 4096 ? t.size : 4096;
        add_text(&h, t.name);
        add_number(&h, t.dimensions, 4);
        for (uint32_t d = 0; d < t.dimensions; d++) add_number(&h, t.shape[d], 8);
        add_number(&h, t.type, 4);
        sha256_add(&h, t.data, part);
        sha256_add(&h, t.data + t.size - part, part);
    }
    sha256_end(&h, out);
    return NULL;
}

static int is_hash(text t, const uint8_t hash[32]) {
    char word[65];
    for (int i = 0; i < 64; i++) word[i] = "0123456789abcdef"[hash[i / 2] >> (i % 2 ? 0 : 4) & 15];
    word[64] = 0;
    return is(t, word);
}

/* Side tensors */

static text text_key(const gguf *file, const char *name, int *failed) {
    uint32_t type;
    cursor c = find_key(file, name, &type);
    text t = {NULL, 0};
    if (!c.failed && type == STRING) t = take_text(&c);
    *failed |= c.failed || type != STRING;
    return t;
}

static uint64_t number_key(const gguf *file, const char *name, uint32_t wanted, int *failed) {
    uint32_t type;
    cursor c = find_key(file, name, &type);
    uint64_t value = take_number(&c, wanted == U32 ? 4 : 8);
    *failed |= c.failed || type != wanted;
    return value;
}

/* At the first of `count` items of an array. */
static cursor array_key(const gguf *file, const char *name, uint32_t wanted, uint64_t *count) {
    uint32_t type, item;
    cursor c = find_key(file, name, &type);
    item = (uint32_t)take_number(&c, 4);
    *count = take_number(&c, 8);
    if (type != ARRAY || item != wanted) c.failed = 1;
    if (c.failed) *count = 0;
    return c;
}

int fingerprint_is_listed(const basis *b, const uint8_t print[32]) {
    uint64_t count;
    cursor c = array_key(&b->file, "tinylora.base.fingerprints", STRING, &count);
    while (count-- && !c.failed)
        if (is_hash(take_text(&c), print)) return 1;
    return 0;
}

/* The factors of a module: A (r, in), B (out, r), of experts with one more dimension in front; P (u, r, r). */
static const char *find_factors(const basis *b, module *m, int with_p) {
    const char *error = find_tensor(&b->file, m->name, ".tinylora_a", &m->a);
    if (!error) error = find_tensor(&b->file, m->name, ".tinylora_b", &m->b);
    if (!error && with_p) error = find_tensor(&b->file, m->name, ".tinylora_p", &m->p);
    if (error) return error;
    uint32_t d = m->a.dimensions;
    if (d < 2 || d > 3 || m->b.dimensions != d || m->a.shape[d - 2] != b->rank || m->b.shape[d - 1] != b->rank ||
        (d == 3 && m->a.shape[0] != m->b.shape[0]) || m->a.type > 1 || m->b.type > 1)
        return "factors";
    if (with_p && (m->p.dimensions != 3 || m->p.shape[0] != b->u || m->p.shape[1] != b->rank ||
                   m->p.shape[2] != b->rank || m->p.type != 0))
        return "projections";
    return NULL;
}

const char *basis_open(basis *b, const uint8_t *data, uint64_t size) {
    int failed = 0, with_p;
    uint64_t count, tied;
    cursor names, groups;
    const char *error = gguf_open(&b->file, data, size);
    b->modules = NULL;
    if (error) return error;
    if (!is(text_key(&b->file, "adapter.type", &failed), "tinylora")) return "no side tensors";
    if (number_key(&b->file, "tinylora.version", U32, &failed) != 1) return "version";
    b->architecture = text_key(&b->file, "general.architecture", &failed);
    b->projection = text_key(&b->file, "tinylora.projection", &failed);
    b->factorization = text_key(&b->file, "tinylora.factorization", &failed);
    b->rank = (uint32_t)number_key(&b->file, "tinylora.rank", U32, &failed);
    b->u = (uint32_t)number_key(&b->file, "tinylora.u", U32, &failed);
    b->groups = (uint32_t)number_key(&b->file, "tinylora.groups", U32, &failed);
    b->seed = number_key(&b->file, "tinylora.seed", U64, &failed);
    names = array_key(&b->file, "tinylora.modules", STRING, &count);
    groups = array_key(&b->file, "tinylora.tying.groups", U32, &tied);
    with_p = is(b->projection, "explicit");
    if (failed || !count || count != tied || b->groups < 1 || b->groups > count) return "keys";
    if (!with_p && !is(b->projection, "irwin-hall-12/splitmix64")) return "unknown projection";
    if (b->rank < 1 || b->u < 1 || b->rank > 1024 || b->u > 65536) return "rank or u";
    b->count = (uint32_t)count;
    b->modules = calloc(count, sizeof *b->modules); /* the file is longer than that */
    if (!b->modules) return "no memory";
    for (uint64_t i = 0; i < count; i++) {
        module *m = b->modules + i;
        m->name = take_text(&names);
        m->group = (uint32_t)take_number(&groups, 4);
        if (names.failed || groups.failed || m->group >= b->groups) return "tying";
        error = find_factors(b, m, with_p);
        if (error) return error;
    }
    compute_digest(b);
    return is_hash(text_key(&b->file, "tinylora.digest", &failed), b->digest) ? NULL : "digest";
}
