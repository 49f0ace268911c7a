#include "basis.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hash.h"
#include "reading.h"

static const uint64_t GOLDEN = 0x9E3779B97F4A7C15u;

/* Random projections */

static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static int32_t lanes(uint64_t z) {
    return (int32_t)((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48));
}

void project(uint64_t seed, text name, uint32_t u, uint32_t k, float *p) {
    uint64_t hash = 0xCBF29CE484222325u, key, entries = (uint64_t)u * k * k;
    float scale = 1.0f / sqrtf((float)k);
    for (uint64_t i = 0; i < name.size; i++) hash = (hash ^ name.at[i]) * 0x100000001B3u;
    key = mix(seed ^ hash);
    for (uint64_t c = 0; c < entries; c++) {
        int32_t s = 0;
        for (uint64_t step = 1; step <= 3; step++) s += lanes(mix(key + (3 * c + step) * GOLDEN));
        p[c] = (float)(s - 393210) / 65536.0f * scale;
    }
}

/* Module number j's group of a random projection, and 0 of a learned one; G where the tying cannot be made. */
static uint32_t group_of(const factors *f, const basis *b, uint32_t j) {
    const module *m = f->modules + j;
    if (b->kind != RANDOM || b->tying == 'f') return 0;
    if (b->tying == 't') return (uint32_t)((uint64_t)j * b->groups / f->count);
    uint32_t first = (uint32_t)((uint64_t)m->kind * b->groups / f->kinds), many = f->modules[m->head].many;
    uint32_t width = (uint32_t)((uint64_t)(m->kind + 1) * b->groups / f->kinds) - first;
    if (!width || width > many) return b->groups;
    return first + (uint32_t)((uint64_t)m->place * width / many);
}

float read_f32(const uint8_t *at) {
    uint32_t bits = at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

const char *basis_r(const factors *f, const basis *b, const float *values, double max_norm, float *out) {
    uint64_t square = (uint64_t)b->rank * b->rank;
    double norm = 0;
    float *p = b->kind == RANDOM ? malloc((size_t)(b->u * square) * sizeof *p) : NULL;
    if (b->kind == RANDOM && !p) return "no memory";
    for (uint32_t m = 0; m < f->count; m++, out += square) {
        const float *row = values + (uint64_t)group_of(f, b, m) * b->u;
        if (p) project(b->seed, f->modules[m].name, b->u, b->rank, p);
        for (uint64_t entry = 0; entry < square; entry++) {
            double sum = b->kind == ENTRIES ? values[m * square + entry] : 0;
            for (uint64_t i = 0; b->kind != ENTRIES && i < b->u; i++)
                sum += (double)row[i] * (p ? p[i * square + entry]
                                           : read_f32(b->p + 4 * ((i * f->count + m) * square + entry)));
            out[entry] = (float)sum;
            norm += (double)out[entry] * out[entry];
        }
    }
    free(p);
    if (!isfinite(norm)) return "not finite";
    return sqrt(norm) > max_norm ? "norm" : NULL;
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

static void factors_digest(factors *f) {
    sha256 whole;
    sha256_begin(&whole);
    sha256_add(&whole, "tinylora factors 2\n", 19);
    add_text(&whole, f->architecture);
    add_text(&whole, f->factorization);
    add_number(&whole, f->rank, 4);
    add_number(&whole, f->count, 4);
    for (uint32_t i = 0; i < f->count; i++) {
        const module *m = f->modules + i;
        uint8_t inner[32];
        sha256 h;
        sha256_begin(&h);
        add_text(&h, m->name);
        add_array(&h, &m->a);
        add_array(&h, &m->b);
        sha256_end(&h, inner);
        sha256_add(&whole, inner, 32);
    }
    sha256_end(&whole, f->digest);
}

static void basis_digest(const factors *f, basis *b) {
    sha256 h;
    sha256_begin(&h);
    sha256_add(&h, "tinylora basis 2\n", 17);
    sha256_add(&h, f->digest, 32);
    sha256_add(&h, b->descriptor, strlen(b->descriptor));
    sha256_end(&h, b->digest);
}

const char *fingerprint(const factors *f, const gguf *base, uint8_t out[32]) {
    uint32_t type;
    cursor c = find_key(base, "general.architecture", &type);
    text architecture = take_text(&c);
    sha256 h;
    if (c.failed || type != STRING) return "the base has no architecture";
    sha256_begin(&h);
    sha256_add(&h, "tinylora base 1\n", 16);
    add_text(&h, architecture);
    for (uint32_t i = 0; i < f->count; i++) {
        tensor t;
        const char *error = find_tensor(base, f->modules[i].name, "", &t);
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

static uint32_t number_key(const gguf *file, const char *name, int *failed) {
    uint32_t type;
    cursor c = find_key(file, name, &type);
    uint32_t value = (uint32_t)take_number(&c, 4);
    *failed |= c.failed || type != U32;
    return value;
}

/* At the first of `count` texts. */
static cursor texts_key(const gguf *file, const char *name, uint64_t *count) {
    uint32_t type, item;
    cursor c = find_key(file, name, &type);
    item = (uint32_t)take_number(&c, 4);
    *count = take_number(&c, 8);
    if (type != ARRAY || item != STRING) c.failed = 1;
    if (c.failed) *count = 0;
    return c;
}

int fingerprint_is_listed(const factors *f, const uint8_t print[32]) {
    uint64_t count;
    cursor c = texts_key(&f->file, "tinylora.base.fingerprints", &count);
    while (count-- && !c.failed)
        if (is_hash(take_text(&c), print)) return 1;
    return 0;
}

/* A (r, in) and B (out, r) of a module, of experts with one more dimension in front; and its place among its kind. */
static const char *find_factors(factors *f, uint32_t number) {
    module *m = f->modules + number;
    const char *error = find_tensor(&f->file, m->name, ".tinylora_a", &m->a);
    if (!error) error = find_tensor(&f->file, m->name, ".tinylora_b", &m->b);
    if (error) return error;
    uint32_t d = m->a.dimensions, head = 0;
    if (d < 2 || d > 3 || m->b.dimensions != d || m->a.shape[d - 2] != f->rank || m->b.shape[d - 1] != f->rank ||
        (d == 3 && m->a.shape[0] != m->b.shape[0]) || m->a.type > 1 || m->b.type > 1)
        return "factors";
    text kind = m->name; /* blk.<block>.<kind>.weight */
    for (int dots = 0; dots < 2 && kind.size; kind.at++, kind.size--) dots += *kind.at == '.';
    for (; head < number; head++) {
        const module *other = f->modules + head;
        if (!other->place && other->name.size > kind.size && other->name.at[other->name.size - kind.size - 1] == '.' &&
            !memcmp(other->name.at + other->name.size - kind.size, kind.at, kind.size))
            break;
    }
    m->head = head;
    m->kind = head < number ? f->modules[head].kind : f->kinds++;
    m->place = f->modules[head].many++;
    return NULL;
}

static int take_word(text *t, const char *word) {
    size_t size = strlen(word);
    if (t->size < size || memcmp(t->at, word, size)) return 0;
    t->at += size;
    t->size -= size;
    return 1;
}

/* A word and a number; what is not canonical is not what is written again. */
static int take_field(text *t, const char *word, uint64_t most, uint64_t *value) {
    uint64_t digits = 0;
    if (!take_word(t, word)) return 0;
    for (*value = 0; t->size && *t->at >= '0' && *t->at <= '9'; t->at++, t->size--, digits++) {
        uint64_t digit = (uint64_t)(*t->at - '0');
        if (*value > (most - digit) / 10) return 0;
        *value = *value * 10 + digit;
    }
    return digits > 0;
}

static void name_random(basis *b, const char *tying) {
    snprintf(b->descriptor, sizeof b->descriptor, "random rank=%u seed=%" PRIu64 " groups=%u u=%u tying=%s", b->rank,
             b->seed, b->groups, b->u, tying);
}

static const char BEYOND[] = "a rank beyond that of the factors";

/* Of projection number i that the file stores or names, all but the digest. */
static const char *listed(const factors *f, uint32_t i, basis *b) {
    static const char *const TYINGS[] = {"tiled", "structured", "full"};
    uint64_t count, rank, groups, u;
    cursor c = texts_key(&f->file, "tinylora.projections", &count);
    text given = {NULL, 0}, t;
    for (uint32_t skipped = 0; skipped <= i; skipped++) given = take_text(&c);
    t = given;
    if (c.failed || given.size >= DESCRIPTOR) return "descriptor";
    memcpy(b->descriptor, given.at, given.size);
    b->descriptor[given.size] = 0;
    if (take_field(&t, "learned rank=", UINT32_MAX, &rank)) {
        char name[32];
        uint8_t hash[32];
        tensor p;
        sha256 h;
        snprintf(name, sizeof name, "tinylora_p.%u", i);
        text whole = {(const uint8_t *)name, strlen(name)};
        const char *error = find_tensor(&f->file, whole, "", &p);
        if (error) return error;
        if (rank > f->rank) return BEYOND;
        if (p.dimensions != 4 || p.type || !rank || p.shape[1] != f->count || p.shape[2] != rank || p.shape[3] != rank)
            return "a projection";
        if (p.size > (uint64_t)4 << 26) return "a projection too large";
        for (uint64_t at = 0; i >= f->checked && at < p.size; at += 4)
            if (!isfinite(read_f32(p.data + at))) return "a projection that is not finite";
        sha256_begin(&h);
        if (i >= f->checked) sha256_add(&h, p.data, p.size);
        sha256_end(&h, hash);
        if (!take_word(&t, " ") || (i >= f->checked && !is_hash(t, hash)) || t.size != 64) return "the digest of a projection";
        b->kind = LEARNED;
        b->n = p.shape[0];
        b->u = (uint32_t)b->n;
        b->p = p.data;
        snprintf(b->descriptor, sizeof b->descriptor, "learned rank=%u %.64s", (unsigned)rank, (const char *)t.at);
    } else {
        int tying = 0;
        t = given;
        if (!take_field(&t, "random rank=", UINT32_MAX, &rank) || !take_field(&t, " seed=", UINT64_MAX, &b->seed) ||
            !take_field(&t, " groups=", UINT32_MAX, &groups) || !take_field(&t, " u=", UINT32_MAX, &u) ||
            !take_word(&t, " tying="))
            return "descriptor";
        while (tying < 3 && !is(t, TYINGS[tying])) tying++;
        if (tying == 3 || !rank || !u || !groups || groups > f->count || (tying == 2 && groups != 1)) return "descriptor";
        if (rank > f->rank) return BEYOND;
        if (u > ((uint64_t)1 << 26) / f->count / (rank * rank)) return "a projection too large";
        b->kind = RANDOM;
        b->tying = TYINGS[tying][0];
        b->groups = (uint32_t)groups;
        b->u = (uint32_t)u;
        b->n = groups * u;
        b->rank = (uint32_t)rank;
        name_random(b, TYINGS[tying]);
        for (uint32_t j = 0; j < f->count; j++)
            if (group_of(f, b, j) >= b->groups) return "groups";
    }
    b->rank = (uint32_t)rank;
    return is(given, b->descriptor) ? NULL : "descriptor";
}

const char *basis_at(const factors *f, uint32_t i, basis *b) {
    const char *error = NULL;
    memset(b, 0, sizeof *b);
    if (i < f->rank) {
        b->kind = ENTRIES;
        b->rank = i + 1;
        b->n = (uint64_t)f->count * b->rank * b->rank;
        snprintf(b->descriptor, sizeof b->descriptor, "entries rank=%u", b->rank);
    } else if (i - f->rank < f->listed) {
        error = listed(f, i - f->rank, b);
    } else {
        b->kind = RANDOM;
        b->tying = 't';
        b->rank = 2;
        b->u = 1;
        b->seed = 42;
        b->n = b->groups = i - f->rank - f->listed + 1;
        name_random(b, "tiled");
    }
    if (!error && b->n > 250000) error = "a basis of that many numbers";
    if (!error) basis_digest(f, b);
    return error;
}

const char *basis_of(const factors *f, const uint8_t *frame, size_t size, basis *b) {
    if (size < 7 || size % 2 == 0) return "no frame";
    for (uint32_t i = 0; i < f->bases; i++) {
        const char *error = basis_at(f, i, b);
        if (error) return error;
        if (!memcmp(b->digest, frame + 1, 4)) return NULL;
    }
    return "basis";
}

const char *factors_open(factors *f, const uint8_t *data, uint64_t size) {
    int failed = 0;
    uint64_t count, projections;
    const char *error;
    memset(f, 0, sizeof *f);
    error = gguf_open(&f->file, data, size);
    if (error) return error;
    if (!is(text_key(&f->file, "adapter.type", &failed), "tinylora")) return "no side tensors";
    if (number_key(&f->file, "tinylora.version", &failed) != 2) return "version";
    f->architecture = text_key(&f->file, "general.architecture", &failed);
    f->factorization = text_key(&f->file, "tinylora.factorization", &failed);
    f->rank = number_key(&f->file, "tinylora.rank", &failed);
    cursor names = texts_key(&f->file, "tinylora.modules", &count);
    texts_key(&f->file, "tinylora.projections", &projections);
    if (failed || !count || !is(f->factorization, "left")) return "keys";
    if (f->rank < 1 || f->rank > 256 || count > 1 << 14 || count * f->rank * f->rank > 250000 || projections > 64)
        return "rank, or how many modules or projections";
    f->count = (uint32_t)count;
    f->listed = (uint32_t)projections;
    f->bases = f->rank + f->listed + (f->rank < 2 ? 0 : f->count);
    f->modules = calloc(count, sizeof *f->modules);
    if (!f->modules) return "no memory";
    for (uint32_t i = 0; i < f->count; i++) {
        f->modules[i].name = take_text(&names);
        error = names.failed ? "modules" : find_factors(f, i);
        if (error) return error;
    }
    factors_digest(f);
    if (!is_hash(text_key(&f->file, "tinylora.factors", &failed), f->digest)) return "digest";
    for (uint32_t i = f->rank; i < f->rank + f->listed; i++) {
        basis one, other;
        error = basis_at(f, i, &one);
        for (uint32_t j = 0; !error && j < i; j++)
            if (!(error = basis_at(f, j, &other)) && !memcmp(one.digest, other.digest, 4)) error = "two projections of one id";
        if (error) return error;
        f->checked = i - f->rank + 1;
    }
    return NULL;
}
