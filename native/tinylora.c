/* SPDX-License-Identifier: Apache-2.0 */
/* See tinylora.h. Written from docs/FORMAT.md alone: its sections are named where they are read. */
#define _POSIX_C_SOURCE 200809L /* mmap, fmemopen */
#define _FILE_OFFSET_BITS 64

#include "tinylora.h"

#include <ctype.h>
#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(_WIN32) && !defined(TINYLORA_NO_MMAP)
#define TINYLORA_NO_MMAP
#endif
#ifndef _WIN32
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif
#ifndef TINYLORA_NO_MMAP
#include <sys/mman.h>
#else
#define munmap(data, size) free(data)
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tinylora: this machine is big-endian, and the formats and llama.cpp's files are little-endian"
#endif
#if defined(__FAST_MATH__) || (defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0)
#error "tinylora: R is the same everywhere: compile without -ffast-math; on 32-bit x86 with -mfpmath=sse"
#endif

/* Limits, so that no small file takes gigabytes or minutes; most are in docs/FORMAT.md. */
enum { LARGEST_VECTOR = 500000, LARGEST_RANK = 256, LARGEST_P = 1 << 26, MOST_MODULES = 1 << 14 };
enum { MOST_LISTED = 64, MOST_ENTRIES = 1 << 18, LONGEST_NAME = 1 << 10, LONGEST_USER = 128 };
enum { LONGEST_TEXT = 1 << 22, LAST_DAY = 0xFFFF, EDGE = 4096 /* bytes of each end, in a fingerprint */ };

/* ---- Errors: an int that is returned beside a `why` is a tinylora_status ---- */

#define N32 "%" PRIu32
#define N64 "%" PRIu64
#define ERR(status, ...) fail(why, TINYLORA_E_##status, __VA_ARGS__)
#define BAD(...) ERR(BASIS, __VA_ARGS__) /* what a file holds: `in_file` says which file */

typedef tinylora_error error;

#if defined(__GNUC__)
static int fail(error *why, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
#endif
static int fail(error *why, int status, const char *format, ...) {
    va_list values;
    if (!why) return status;
    va_start(values, format);
    vsnprintf(why->text, sizeof why->text, format, values);
    va_end(values);
    for (char *c = why->text; *c; c++) /* names come from files, and may be no text */
        if (*c < ' ' || *c > '~') *c = '?';
    return status;
}

static int no_memory(error *why, uint64_t bytes) { return ERR(SYSTEM, "no memory for " N64 " bytes", bytes); }

/* Put the file's path before an error's text. An error in what the file holds gets the kind `status`. */
static int in_file(error *why, int found, int status, const char *path) {
    error inner;
    size_t length = strlen(path) < 150 ? strlen(path) : 150;
    if (found == TINYLORA_E_BASIS) found = status;
    if (!found || !why) return found;
    while (length && (path[length] & 0xC0) == 0x80) length--; /* no half of a character */
    inner = *why;
    snprintf(why->text, sizeof why->text, "%.*s: %.245s", (int)length, path, inner.text);
    return found;
}

/* ---- Hashes: SHA-256 (FIPS 180-4), HMAC-SHA-256 (RFC 2104), CRC-32 (as in zlib) ---- */

typedef struct {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
} sha256;

static uint32_t rotr(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_blocks(uint32_t state[8], const uint8_t *at, size_t count) {
    static const uint32_t K[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    };
    for (; count; count--, at += 64) {
        uint32_t w[64], a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int t = 0; t < 16; t++)
            w[t] = (uint32_t)at[4 * t] << 24 | (uint32_t)at[4 * t + 1] << 16 | (uint32_t)at[4 * t + 2] << 8 |
                   at[4 * t + 3];
        for (int t = 16; t < 64; t++) {
            uint32_t x = w[t - 15], y = w[t - 2];
            w[t] = w[t - 16] + (rotr(x, 7) ^ rotr(x, 18) ^ x >> 3) + w[t - 7] +
                   (rotr(y, 17) ^ rotr(y, 19) ^ y >> 10);
        }
        for (int t = 0; t < 64; t++) {
            uint32_t one = h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & f) ^ (~e & g)) + K[t] + w[t];
            uint32_t two = (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + one;
            d = c, c = b, b = a, a = one + two;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

static void sha256_begin(sha256 *s) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(s->state, start, sizeof start);
    s->bytes = 0;
}

static void sha256_add(sha256 *s, const void *data, uint64_t size) {
    const uint8_t *at = data;
    while (size) {
        size_t have = (size_t)(s->bytes % 64), more = size < 64 - have ? (size_t)size : 64 - have;
        if (!have && size >= 64) { /* whole blocks, from where they are */
            more = (size_t)(size - size % 64);
            sha256_blocks(s->state, at, more / 64);
        } else {
            memcpy(s->block + have, at, more);
            if (have + more == 64) sha256_blocks(s->state, s->block, 1);
        }
        s->bytes += more;
        at += more;
        size -= more;
    }
}

static void sha256_end(sha256 *s, uint8_t out[32]) {
    uint8_t end[8], padding[64] = {0x80};
    uint64_t bits = 8 * s->bytes;
    for (int i = 0; i < 8; i++) end[i] = (uint8_t)(bits >> (56 - 8 * i));
    sha256_add(s, padding, 1 + (119 - s->bytes % 64) % 64);
    sha256_add(s, end, 8);
    for (int i = 0; i < 32; i++) out[i] = (uint8_t)(s->state[i / 4] >> (24 - 8 * (i % 4)));
}

static void sha256_of(const void *data, uint64_t size, uint8_t out[32]) {
    sha256 s;
    sha256_begin(&s);
    sha256_add(&s, data, size);
    sha256_end(&s, out);
}

static void hmac_sha256(const uint8_t *key, size_t length, const void *data, size_t size, uint8_t out[32]) {
    uint8_t block[64] = {0};
    sha256 s;
    if (length > 64)
        sha256_of(key, length, block);
    else
        memcpy(block, key, length);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < 64; i++) block[i] ^= pass ? 0x36 ^ 0x5c : 0x36;
        sha256_begin(&s);
        sha256_add(&s, block, 64);
        sha256_add(&s, pass ? out : data, pass ? 32 : size);
        sha256_end(&s, out);
    }
}

static uint32_t crc32(const uint8_t *at, size_t size) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static const char *hex(char *out, const uint8_t *data, size_t size) {
    for (size_t i = 0; i < 2 * size; i++) out[i] = "0123456789abcdef"[data[i / 2] >> (i % 2 ? 0 : 4) & 15];
    out[2 * size] = 0;
    return out;
}

/* ---- Numbers and texts ---- */

/* Little-endian, as this machine is; `size` is at most 8. */
static uint64_t number_at(const uint8_t *at, size_t size) {
    uint64_t value = 0;
    memcpy(&value, at, size);
    return value;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static float f32_at(const uint8_t *at) { return float_of((uint32_t)number_at(at, 4)); }

static float f16_at(const uint8_t *at) {
    uint32_t low = (uint32_t)number_at(at, 2), sign = (low & 0x8000) << 16, exponent = low >> 10 & 31;
    uint32_t fraction = low & 0x3FF;
    if (exponent == 31) return float_of(sign | 0x7F800000 | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)fraction / 16777216.0f; /* 2^24 */
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

typedef struct {
    const uint8_t *at;
    uint64_t size;
} text; /* UTF-8 inside a file, without a terminator */

#define NAME(t) (int)((t).size < 80 ? (t).size : 80), (const char *)(t).at /* for "%.*s" */

static int same(text a, text b) { return a.size == b.size && !memcmp(a.at, b.at, (size_t)a.size); }

static text text_of(const char *word) {
    text t = {(const uint8_t *)word, strlen(word)};
    return t;
}

static int is(text t, const char *word) { return same(t, text_of(word)); }

/* Take a word from the beginning of a text; take_field: a word and a decimal number behind it. */
static int take_word(text *t, const char *word) {
    size_t size = strlen(word);
    if (t->size < size || memcmp(t->at, word, size)) return 0;
    t->at += size;
    t->size -= size;
    return 1;
}

static int take_field(text *t, const char *word, uint64_t most, uint64_t *value) {
    int digits = 0;
    if (!take_word(t, word)) return 0;
    for (*value = 0; t->size && *t->at >= '0' && *t->at <= '9'; t->at++, t->size--, digits++) {
        uint64_t digit = (uint64_t)(*t->at - '0');
        if (*value > (most - digit) / 10) return 0;
        *value = *value * 10 + digit;
    }
    return digits > 0;
}

/* ---- GGUF, read without trust: each length is checked against the size of the file ---- */

enum { U32 = 4, STRING = 8, ARRAY = 9, F32 = 0, F16 = 1 };

typedef struct {
    text name;
    uint32_t dimensions, type;
    uint64_t shape[4]; /* slowest first */
    const uint8_t *data;
    uint64_t size, offset; /* bytes */
} tensor;

typedef struct {
    const uint8_t *data, *keys;
    uint64_t size, key_count, tensor_count;
    tensor *tensors; /* in the order of their names */
} gguf;

typedef struct {
    const uint8_t *at, *end;
    int failed; /* once it is set, nothing more is read, and everything is 0 */
} cursor;

static const uint8_t *take(cursor *c, uint64_t size) {
    const uint8_t *at = c->at;
    if (c->failed || size > (uint64_t)(c->end - c->at)) {
        c->failed = 1;
        return NULL;
    }
    c->at += size;
    return at;
}

static uint64_t take_number(cursor *c, size_t size) {
    const uint8_t *at = take(c, size);
    return at ? number_at(at, size) : 0;
}

/* UTF-8 (RFC 3629): the shortest form alone, no half of a surrogate pair, nothing beyond U+10FFFF. */
static int is_utf8(text t) {
    for (uint64_t i = 0; i < t.size;) {
        uint8_t c = t.at[i++], low = 0x80, high = 0xBF;
        uint64_t more = c < 0x80 ? 0 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : 3;
        if ((more && (c < 0xC2 || c > 0xF4)) || more > t.size - i) return 0;
        if (c == 0xE0 || c == 0xF0) low = c == 0xE0 ? 0xA0 : 0x90;
        if (c == 0xED || c == 0xF4) high = c == 0xED ? 0x9F : 0x8F;
        for (; more; more--, i++, low = 0x80, high = 0xBF)
            if (t.at[i] < low || t.at[i] > high) return 0;
    }
    return 1;
}

static text take_text(cursor *c) {
    text t = {NULL, take_number(c, 8)};
    t.at = take(c, t.size);
    if (!c->failed && !is_utf8(t)) c->failed = 1;
    return c->failed ? text_of("") : t;
}

static void skip_value(cursor *c, uint32_t type) {
    static const uint8_t bytes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    uint64_t count = 1;
    int array = type == ARRAY;
    if (array) {
        type = (uint32_t)take_number(c, 4);
        count = take_number(c, 8);
    }
    if (type == STRING && array) {
        while (count-- && !c->failed) take(c, take_number(c, 8)); /* a vocabulary may hold other bytes */
    } else if (type == STRING) {
        take_text(c);
    } else if (type > 12 || !bytes[type] || count > UINT64_MAX / 8) {
        c->failed = 1;
    } else {
        take(c, count * bytes[type]);
    }
}

/* A cursor at the value of a key, the last one of its name; failed where that has another type, or there is none. */
static cursor find_key(const gguf *file, const char *name, uint32_t type) {
    cursor c = {file->keys, file->data + file->size, 0}, value = {NULL, NULL, 1};
    for (uint64_t i = 0; i < file->key_count; i++) {
        text key = take_text(&c);
        uint32_t found = (uint32_t)take_number(&c, 4);
        if (is(key, name)) {
            value = c;
            value.failed |= found != type;
        }
        skip_value(&c, found);
    }
    return value;
}

static text text_key(const gguf *file, const char *name) { /* empty where there is none */
    cursor c = find_key(file, name, STRING);
    return take_text(&c);
}

static uint32_t number_key(const gguf *file, const char *name, uint32_t otherwise) {
    cursor c = find_key(file, name, U32);
    return c.failed ? otherwise : (uint32_t)take_number(&c, 4);
}

/* A cursor at the first of `count` texts. */
static cursor texts_key(const gguf *file, const char *name, uint64_t *count) {
    cursor c = find_key(file, name, ARRAY);
    if (take_number(&c, 4) != STRING) c.failed = 1;
    *count = take_number(&c, 8);
    return c;
}

/* Check a list of texts that may be absent. */
static int check_texts(const gguf *file, const char *name, error *why) {
    uint64_t count;
    cursor c = texts_key(file, name, &count);
    while (count-- && !c.failed) take_text(&c);
    return c.at && c.failed ? BAD("its %s is no list of texts in UTF-8", name) : TINYLORA_OK;
}

static int take_entry(cursor *c, tensor *t, error *why) {
    /* By type: values a block, bytes a block (docs/FORMAT.md, "Fingerprint"); 0: there is no such type. */
    // clang-format off
    static const uint16_t types[42][2] = {
        {1, 4}, {1, 2}, {32, 18}, {32, 20}, {0}, {0}, {32, 22}, {32, 24}, {32, 34}, {32, 40},
        {256, 84}, {256, 110}, {256, 144}, {256, 176}, {256, 210}, {256, 292}, {256, 66}, {256, 74},
        {256, 98}, {256, 50}, {32, 18}, {256, 110}, {256, 82}, {256, 136}, {1, 1}, {1, 2}, {1, 4},
        {1, 8}, {1, 8}, {256, 56}, {1, 2}, {0}, {0}, {0}, {256, 54}, {256, 66}, {0}, {0}, {0},
        {32, 17}, {64, 36}, {128, 18}};
    // clang-format on
    uint64_t count = 1;
    t->name = take_text(c);
    t->dimensions = (uint32_t)take_number(c, 4);
    if (c->failed || t->dimensions < 1 || t->dimensions > 4)
        return BAD("tensor %.*s has " N32 " dimensions, expected 1 to 4", NAME(t->name), t->dimensions);
    for (uint32_t i = t->dimensions; i-- > 0;) { /* the file has the fastest first */
        uint64_t d = t->shape[i] = take_number(c, 8);
        if (!d || d > UINT64_MAX / 512 / count) return BAD("%.*s has a dimension of " N64, NAME(t->name), d);
        count *= d;
    }
    t->type = (uint32_t)take_number(c, 4);
    t->offset = take_number(c, 8);
    if (c->failed || t->type >= 42 || !types[t->type][0] || t->shape[t->dimensions - 1] % types[t->type][0])
        return BAD("tensor %.*s has type " N32 ": unknown, or no whole blocks", NAME(t->name), t->type);
    t->size = count / types[t->type][0] * types[t->type][1];
    return TINYLORA_OK;
}

static int compared(text a, text b) {
    int order = memcmp(a.at, b.at, (size_t)(a.size < b.size ? a.size : b.size));
    return order ? order : (a.size > b.size) - (a.size < b.size);
}

static int by_name(const void *a, const void *b) {
    return compared(((const tensor *)a)->name, ((const tensor *)b)->name);
}

static int by_place(const void *a, const void *b) {
    const uint8_t *one = ((const tensor *)a)->data, *two = ((const tensor *)b)->data;
    return (one > two) - (one < two);
}

/* Read what is mapped. After an error, too, call `close_gguf`. */
static int read_gguf(gguf *file, error *why) {
    uint64_t start, size = file->size;
    cursor c = {file->data, file->data + size, 0};
    const uint8_t *magic = take(&c, 4);
    uint32_t version = (uint32_t)take_number(&c, 4), alignment;
    file->tensor_count = take_number(&c, 8);
    file->key_count = take_number(&c, 8);
    if (c.failed || memcmp(magic, "GGUF", 4) || (version != 2 && version != 3))
        return BAD("it is no GGUF file of version 2 or 3 (" N64 " bytes)", size);
    if (file->tensor_count > MOST_ENTRIES || file->key_count > MOST_ENTRIES || file->tensor_count > size / 32)
        return BAD("it declares " N64 " tensors and " N64 " keys", file->tensor_count, file->key_count);
    file->keys = c.at;
    for (uint64_t i = 0; i < file->key_count && !c.failed; i++) {
        take_text(&c);
        skip_value(&c, (uint32_t)take_number(&c, 4));
    }
    if (c.failed) return BAD("its keys are damaged, or go beyond its " N64 " bytes", size);
    alignment = number_key(file, "general.alignment", 32);
    if (!alignment || alignment & (alignment - 1))
        return BAD("its alignment is " N32 ", expected a power of two", alignment);
    file->tensors = malloc((size_t)file->tensor_count * sizeof *file->tensors + 1);
    if (!file->tensors) return no_memory(why, file->tensor_count * sizeof *file->tensors);
    for (uint64_t i = 0; i < file->tensor_count; i++)
        if (take_entry(&c, file->tensors + i, why)) return TINYLORA_E_BASIS;
    start = (uint64_t)(c.at - file->data);
    start += (alignment - start % alignment) % alignment;
    for (uint64_t i = 0; i < file->tensor_count; i++) {
        tensor *t = file->tensors + i;
        if (start > size || t->offset > size - start || t->size > size - start - t->offset)
            return BAD("tensor %.*s ends beyond the file's " N64 " bytes: it was cut", NAME(t->name), size);
        t->data = file->data + start + t->offset;
    }
    qsort(file->tensors, (size_t)file->tensor_count, sizeof *file->tensors, by_place);
    for (uint64_t i = 1; i < file->tensor_count; i++) {
        const tensor *one = file->tensors + i - 1, *two = one + 1;
        if ((uint64_t)(two->data - one->data) < one->size)
            return BAD("its tensors %.*s and %.*s lie over the same bytes", NAME(one->name), NAME(two->name));
    }
    qsort(file->tensors, (size_t)file->tensor_count, sizeof *file->tensors, by_name);
    for (uint64_t i = 1; i < file->tensor_count; i++)
        if (!by_name(file->tensors + i - 1, file->tensors + i))
            return BAD("it has the tensor %.*s twice", NAME(file->tensors[i].name));
    return TINYLORA_OK;
}

/* The tensor whose name is `name` and then `suffix`, or NULL. */
static const tensor *find_tensor(const gguf *file, text name, const char *suffix) {
    uint8_t joined[LONGEST_NAME + 32];
    size_t more = strlen(suffix);
    tensor wanted;
    if (name.size + more > sizeof joined || !file->tensor_count) return NULL;
    memcpy(joined, name.at, (size_t)name.size);
    memcpy(joined + name.size, suffix, more);
    wanted.name.at = joined;
    wanted.name.size = name.size + more;
    return bsearch(&wanted, file->tensors, (size_t)file->tensor_count, sizeof wanted, by_name);
}

/* ---- Files ---- */

/* All files are opened here: regular ones alone, since a pipe would wait for somebody who writes. */
static FILE *open_file(const char *path, error *why) {
#ifdef _WIN32
    FILE *file = fopen(path, "rb");
    if (!file) ERR(SYSTEM, "%s", strerror(errno));
#else
    struct stat about;
    int handle = open(path, O_RDONLY | O_NONBLOCK);
    int regular = handle >= 0 && !fstat(handle, &about) && S_ISREG(about.st_mode);
    FILE *file = regular ? fdopen(handle, "rb") : NULL;
    if (!file) ERR(SYSTEM, "%s", handle >= 0 && !regular ? "it is no regular file" : strerror(errno));
    if (!file && handle >= 0) close(handle);
#endif
    return file;
}

static int map_file(gguf *file, const char *path, error *why) {
    FILE *from = open_file(path, why);
    void *data;
    if (!from) return TINYLORA_E_SYSTEM;
#ifndef TINYLORA_NO_MMAP
    struct stat about = {0};
    if (!fstat(fileno(from), &about) && about.st_size > 0 && (uint64_t)about.st_size <= SIZE_MAX)
        file->size = (uint64_t)about.st_size;
    data = mmap(NULL, (size_t)file->size, PROT_READ, MAP_PRIVATE, fileno(from), 0); /* not of 0 bytes */
    file->data = data == MAP_FAILED ? NULL : data;
#else
    long end = fseek(from, 0, SEEK_END) ? -1 : ftell(from);
    file->data = data = end > 0 ? malloc((size_t)end) : NULL;
    rewind(from);
    file->size = data ? fread(data, 1, (size_t)end, from) : 0;
#endif
    fclose(from); /* a mapping stays */
    if (file->data && file->size) return TINYLORA_OK;
    return ERR(SYSTEM, "it is empty, or cannot be read into memory: %s", strerror(errno));
}

static int open_gguf(gguf *file, const char *path, error *why) {
    int status;
    memset(file, 0, sizeof *file);
    status = map_file(file, path, why);
    return status ? status : read_gguf(file, why);
}

static void close_gguf(gguf *file) {
    free(file->tensors);
    if (file->data) munmap((void *)(uintptr_t)file->data, (size_t)file->size);
}

/* ---- Modules ---- */

typedef struct {
    text name, kind;
    uint64_t block;
    tensor a, b;
    uint32_t order; /* of the kind inside a block */
    uint32_t rows;  /* of R: columns of b */
} module;

enum { ENTRIES, LEARNED, RANDOM };
enum { SEED = 42 }; /* of random projections */

typedef struct {
    tinylora_basis known;
    int kind;
    const uint8_t *p; /* of a learned one */
} basis;

struct tinylora_own {
    tinylora_bases bases;
    gguf file;
    text architecture, factorization;
    module *modules;
    basis *first; /* entries, and what the file lists: looked up before the default random ones */
    uint32_t first_count;
    int base_fits;
};

/* blk.<block>.<kind>.weight (docs/FORMAT.md, "Modules and groups"). */
static int read_name(module *m) {
    static const char *const kinds[] = {"attn_q",        "attn_qkv",    "attn_k",       "attn_v",
                                        "attn_output",   "ffn_gate",    "ffn_up",       "ffn_down",
                                        "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"};
    text t = m->name;
    if (!take_field(&t, "blk.", UINT32_MAX, &m->block) || !take_word(&t, ".")) return 0;
    m->kind = t;
    for (m->kind.size = 0; m->kind.size < t.size && t.at[m->kind.size] != '.'; m->kind.size++) continue;
    t.at += m->kind.size;
    t.size -= m->kind.size;
    for (m->order = 0; m->order < sizeof kinds / sizeof *kinds && !is(m->kind, kinds[m->order]);) m->order++;
    return m->kind.size && is(t, ".weight");
}

static int comes_before(const module *a, const module *b) {
    if (a->block != b->block) return a->block < b->block;
    return a->order != b->order ? a->order < b->order : compared(a->kind, b->kind) < 0;
}

/* A (Q, in) and B (out, Q to P) of a module, of experts with a dimension in front. */
static int read_module(tinylora_bases *bases, uint32_t number, text name, error *why) {
    struct tinylora_own *own = bases->own;
    module *m = own->modules + number;
    const tensor *a, *b;
    uint32_t d, r = bases->rank;
    m->name = name;
    if (!read_name(m) || (number && !comes_before(m - 1, m)))
        return BAD("module %.*s is not of the form blk.0.attn_q.weight, or not in order", NAME(name));
    a = find_tensor(&own->file, name, ".tinylora_a");
    b = find_tensor(&own->file, name, ".tinylora_b");
    if (!a || !b) return BAD("it lacks the factors of %.*s", NAME(name));
    d = a->dimensions;
    if (d < 2 || d > 3 || b->dimensions != d || a->type > F16 || b->type > F16 || a->shape[d - 2] != r ||
        b->shape[d - 1] < r || b->shape[d - 1] > bases->outputs || (d == 3 && a->shape[0] != b->shape[0]))
        return BAD("the factors of %.*s are not F32 or F16 of rank " N32 " and " N32 " outputs", NAME(name),
                   bases->rank, bases->outputs);
    m->a = *a;
    m->b = *b;
    m->rows = (uint32_t)b->shape[d - 1];
    return TINYLORA_OK;
}

/* ---- Digests ---- */

static void add_number(sha256 *s, uint64_t value, size_t size) { sha256_add(s, &value, size); }

static void add_text(sha256 *s, text t) {
    add_number(s, t.size, 4);
    sha256_add(s, t.at, t.size);
}

static void add_shape(sha256 *s, const tensor *t) {
    add_number(s, t->dimensions, 4);
    for (uint32_t i = 0; i < t->dimensions; i++) add_number(s, t->shape[i], 8);
}

static void add_array(sha256 *s, const tensor *t) {
    add_number(s, t->type == F32 ? 4 : 2, 4);
    add_shape(s, t);
    sha256_add(s, t->data, t->size);
}

static void factors_digest(tinylora_bases *bases) {
    const struct tinylora_own *own = bases->own;
    sha256 whole;
    sha256_begin(&whole);
    sha256_add(&whole, "tinylora factors 2\n", 19);
    add_text(&whole, own->architecture);
    add_text(&whole, own->factorization);
    add_number(&whole, bases->rank, 4);
    add_number(&whole, bases->modules, 4);
    for (uint32_t i = 0; i < bases->modules; i++) {
        const module *m = own->modules + i;
        uint8_t inner[32];
        sha256 s;
        sha256_begin(&s);
        add_text(&s, m->name);
        add_array(&s, &m->a);
        add_array(&s, &m->b);
        sha256_end(&s, inner);
        sha256_add(&whole, inner, 32);
    }
    sha256_end(&whole, bases->digest);
}

static void basis_digest(const tinylora_bases *bases, basis *b) {
    sha256 s;
    sha256_begin(&s);
    sha256_add(&s, "tinylora basis 2\n", 17);
    sha256_add(&s, bases->digest, 32);
    sha256_add(&s, b->known.descriptor, strlen(b->known.descriptor));
    sha256_end(&s, b->known.digest);
}

static int is_hash(text t, const uint8_t hash[32]) {
    char word[65];
    return is(t, hex(word, hash, 32));
}

/* ---- Projections ---- */

static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* P of a module: u * k * k floats. */
static void project(uint64_t seed, text name, uint32_t u, uint32_t k, float *p) {
    uint64_t hash = 0xCBF29CE484222325u, key, entries = (uint64_t)u * k * k;
    float scale = 1.0f / sqrtf((float)k);
    for (uint64_t i = 0; i < name.size; i++) hash = (hash ^ name.at[i]) * 0x100000001B3u;
    key = mix(seed ^ hash);
    for (uint64_t c = 0; c < entries; c++) {
        int32_t s = 0;
        for (uint64_t step = 1; step <= 3; step++) {
            uint64_t z = mix(key + (3 * c + step) * 0x9E3779B97F4A7C15u);
            s += (int32_t)((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48));
        }
        p[c] = (float)(s - 393210) / 65536.0f * scale;
    }
}

/* Rows of R, p x q, that module m has. The others are zeros, for which a vector has no numbers. */
static uint32_t rows_of(const tinylora_bases *bases, uint32_t m, uint32_t p) {
    uint32_t rows = bases->own->modules[m].rows;
    return rows < p ? rows : p;
}

static void set_entries(const tinylora_bases *bases, basis *b, uint32_t p, uint32_t q) {
    b->kind = ENTRIES;
    b->known.outputs = p;
    b->known.rank = q;
    b->known.n = 0;
    for (uint32_t m = 0; m < bases->modules; m++) b->known.n += rows_of(bases, m, p) * q;
    if (p == q)
        snprintf(b->known.descriptor, sizeof b->known.descriptor, "entries rank=" N32, q);
    else
        snprintf(b->known.descriptor, sizeof b->known.descriptor, "entries out=" N32 " in=" N32, p, q);
}

static void set_random(basis *b, uint32_t k, uint32_t groups) {
    b->kind = RANDOM;
    b->known.outputs = b->known.rank = k;
    b->known.n = groups;
    snprintf(b->known.descriptor, sizeof b->known.descriptor,
             "random rank=" N32 " seed=%d groups=" N32 " u=1 tying=tiled", k, SEED, groups);
}

/* The learned projection of rank k whose P is stored under number i. */
static int read_learned(const tinylora_bases *bases, uint32_t i, uint64_t k, basis *b, error *why) {
    char name[32], found[65];
    uint8_t hash[32];
    const tensor *p;
    snprintf(name, sizeof name, "tinylora_p." N32, i);
    p = find_tensor(&bases->own->file, text_of(name), "");
    if (!p || p->dimensions != 4 || p->type != F32 || p->shape[1] != bases->modules || p->shape[2] != k ||
        p->shape[3] != k || p->shape[0] > LARGEST_VECTOR || p->size > 4 * (uint64_t)LARGEST_P)
        return BAD("%s is not F32 of shape (n, " N32 ", " N64 ", " N64 ")", name, bases->modules, k, k);
    for (uint64_t at = 0; at < p->size; at += 4)
        if (!isfinite(f32_at(p->data + at))) return BAD("entry " N64 " of %s is not finite", at / 4, name);
    sha256_of(p->data, p->size, hash);
    b->kind = LEARNED;
    b->known.outputs = b->known.rank = (uint32_t)k;
    b->known.n = (uint32_t)p->shape[0];
    b->p = p->data;
    hex(found, hash, 32);
    snprintf(b->known.descriptor, sizeof b->known.descriptor, "learned rank=" N64 " %s", k, found);
    return TINYLORA_OK;
}

static int read_random(const tinylora_bases *bases, uint64_t k, text rest, basis *b, error *why) {
    uint64_t seed, groups, u;
    if (!take_field(&rest, " seed=", UINT64_MAX, &seed) ||
        !take_field(&rest, " groups=", UINT32_MAX, &groups) || !take_field(&rest, " u=", UINT32_MAX, &u) ||
        !take_word(&rest, " tying="))
        return BAD("it lists a random projection in another form than the canonical one");
    if (seed != SEED || u != 1 || !is(rest, "tiled"))
        return BAD("it lists a random projection of seed " N64 ", u=" N64 ", tying=%.*s: expected %d, 1, tiled",
                   seed, u, NAME(rest), SEED);
    if (!groups || groups > bases->modules || k * k > (uint64_t)LARGEST_P / bases->modules)
        return BAD("no projection has " N64 " groups of " N32 " modules", groups, bases->modules);
    set_random(b, (uint32_t)k, (uint32_t)groups);
    return TINYLORA_OK;
}

/* Projection number i that the file stores or names. */
static int read_listed(const tinylora_bases *bases, uint32_t i, text given, basis *b, error *why) {
    text rest = given;
    uint64_t k = 0;
    int learned = take_field(&rest, "learned rank=", UINT32_MAX, &k), status;
    if (!learned && !take_field(&rest, "random rank=", UINT32_MAX, &k))
        return BAD("it lists %.*s, which names no projection", NAME(given));
    if (k < 1 || k > bases->rank)
        return BAD("it lists a projection of rank " N64 ", but its factors have rank " N32, k, bases->rank);
    status = learned ? read_learned(bases, i, k, b, why) : read_random(bases, k, rest, b, why);
    if (status || is(given, b->known.descriptor)) return status;
    return BAD("it lists %.*s, but that is %s", NAME(given), b->known.descriptor);
}

/* Basis number i < bases->bases. */
static void basis_at(const tinylora_bases *bases, uint32_t i, basis *b) {
    const struct tinylora_own *own = bases->own;
    if (i < own->first_count) {
        *b = own->first[i];
        return;
    }
    memset(b, 0, sizeof *b);
    i -= own->first_count;
    if (bases->rank > 1 && i < bases->modules) {
        set_random(b, 2, i + 1);
    } else { /* p x q, by p and then by q, without the square ones */
        uint32_t p = 1, q = 0;
        if (bases->rank > 1) i -= bases->modules;
        do {
            p += q == bases->rank;
            q = q % bases->rank + 1;
        } while (p == q || i--);
        set_entries(bases, b, p, q);
    }
    basis_digest(bases, b);
}

/* `out` has modules * p * q floats. */
static int make_r(const tinylora_bases *bases, const basis *b, const float *v, double max_norm, float *out,
                  error *why) {
    uint64_t size = (uint64_t)b->known.outputs * b->known.rank; /* of R of a module */
    uint64_t terms = b->kind == LEARNED ? b->known.n : 1; /* of a sum */
    double norm = 0;
    float *p = b->kind == RANDOM ? malloc((size_t)size * sizeof *p) : NULL;
    if (b->kind == RANDOM && !p) return no_memory(why, size * sizeof *p);
    for (uint32_t m = 0; m < bases->modules; m++, out += size) {
        uint64_t own = (uint64_t)rows_of(bases, m, b->known.outputs) * b->known.rank; /* entries that v has */
        const float *row = p ? v + (uint64_t)m * b->known.n / bases->modules : v; /* a number for each group */
        if (p) project(SEED, bases->own->modules[m].name, 1, b->known.rank, p);
        for (uint64_t entry = 0; entry < size; entry++) {
            double sum = b->kind == ENTRIES && entry < own ? v[entry] : 0;
            for (uint64_t i = 0; b->kind != ENTRIES && i < terms; i++) {
                uint64_t stored = (i * bases->modules + m) * size + entry;
                sum += (double)row[i] * (p ? p[entry] : f32_at(b->p + 4 * stored));
            }
            out[entry] = (float)sum;
            norm += (double)out[entry] * out[entry];
        }
        if (b->kind == ENTRIES) v += own;
    }
    free(p);
    norm = sqrt(norm);
    if (!max_norm) max_norm = 256;
    if (!(norm <= max_norm) || isinf(norm)) /* nor NaN */
        return ERR(VALUES, "R has the norm %.4g, and at most %.4g is accepted", norm, max_norm);
    return TINYLORA_OK;
}

/* ---- Open ---- */

static int read_side_tensors(tinylora_bases *bases, const char *path, error *why) {
    struct tinylora_own *own = bases->own;
    const gguf *file = &own->file;
    uint64_t count, listed;
    uint32_t version, most = 0;
    char found[65];
    text kind, stated;
    cursor names, texts;
    int status = open_gguf(&own->file, path, why);
    if (status) return status;
    kind = text_key(file, "general.type");
    if (!is(kind, "adapter")) return BAD("general.type is '%.*s', expected 'adapter'", NAME(kind));
    kind = text_key(file, "adapter.type");
    if (!is(kind, "tinylora")) return BAD("adapter.type is '%.*s', expected 'tinylora'", NAME(kind));
    version = number_key(file, "tinylora.version", 0);
    if (version != 2) return BAD("it has version " N32 ", and 2 is read: export the model again", version);
    own->architecture = text_key(file, "general.architecture");
    own->factorization = text_key(file, "tinylora.factorization");
    bases->rank = number_key(file, "tinylora.rank", 0);
    bases->outputs = number_key(file, "tinylora.outputs", bases->rank);
    if (!is(own->factorization, "left"))
        return BAD("its factorization is '%.*s', and 'left' is read", NAME(own->factorization));
    if ((status = check_texts(file, "tinylora.base.fingerprints", why)) ||
        (status = check_texts(file, "tinylora.projections", why)))
        return status;
    names = texts_key(file, "tinylora.modules", &count);
    texts = texts_key(file, "tinylora.projections", &listed);
    if (bases->rank < 1 || bases->outputs < bases->rank || bases->outputs > LARGEST_RANK || count < 1 ||
        count > MOST_MODULES || count * bases->rank * bases->outputs > LARGEST_VECTOR || listed > MOST_LISTED)
        return BAD("rank " N32 ", " N32 " outputs, " N64 " modules, " N64 " projections: too much",
                   bases->rank, bases->outputs, count, listed);
    bases->modules = (uint32_t)count;
    own->first_count = bases->rank + (uint32_t)listed;
    bases->bases = own->first_count + (bases->rank < 2 ? 0 : bases->modules) +
                   bases->rank * (bases->outputs - 1); /* entries p x q, without the square ones */
    own->modules = calloc(bases->modules, sizeof *own->modules);
    own->first = calloc(own->first_count, sizeof *own->first);
    if (!own->modules || !own->first) return no_memory(why, count * sizeof *own->modules);
    for (uint32_t i = 0; i < bases->modules; i++) {
        if ((status = read_module(bases, i, take_text(&names), why))) return status;
        if (own->modules[i].rows > most) most = own->modules[i].rows;
    }
    if (most != bases->outputs)
        return BAD("it states " N32 " outputs, but its factors have " N32, bases->outputs, most);
    factors_digest(bases);
    stated = text_key(file, "tinylora.factors");
    if (!is_hash(stated, bases->digest))
        return BAD("it is damaged: it states factors %.*s, but its content gives %s", NAME(stated),
                   hex(found, bases->digest, 32));
    for (uint32_t i = 0; i < own->first_count; i++) {
        basis *b = own->first + i;
        if (i < bases->rank) {
            set_entries(bases, b, i + 1, i + 1);
        } else if ((status = read_listed(bases, i - bases->rank, take_text(&texts), b, why))) {
            return status;
        }
        basis_digest(bases, b);
        for (uint32_t j = 0; j < i && i >= bases->rank; j++)
            if (!memcmp(b->known.digest, own->first[j].known.digest, 4))
                return BAD("%s and %s have one id: a frame could not say which is meant",
                           own->first[j].known.descriptor, b->known.descriptor);
    }
    return TINYLORA_OK;
}

/* Whether a base is one that the factors were exported for (docs/FORMAT.md, "Fingerprint"). */
static int check_base(const tinylora_bases *bases, const gguf *base, error *why) {
    const struct tinylora_own *own = bases->own;
    text architecture = text_key(base, "general.architecture");
    uint64_t count;
    uint8_t print[32];
    char shown[65];
    cursor c;
    sha256 s;
    if (!same(architecture, own->architecture))
        return ERR(BASE, "its architecture is '%.*s', and that of the factors '%.*s'", NAME(architecture),
                   NAME(own->architecture));
    sha256_begin(&s);
    sha256_add(&s, "tinylora base 1\n", 16);
    add_text(&s, architecture);
    for (uint32_t i = 0; i < bases->modules; i++) {
        const module *m = own->modules + i;
        const tensor *t = find_tensor(base, m->name, "");
        uint32_t d = m->a.dimensions;
        uint64_t part;
        if (!t) return ERR(BASE, "it lacks %.*s, which has factors: another model", NAME(m->name));
        if (t->dimensions != d || t->shape[d - 1] != m->a.shape[d - 1] ||
            t->shape[d - 2] != m->b.shape[d - 2] || (d == 3 && t->shape[0] != m->a.shape[0]))
            return ERR(BASE, "%.*s has rows of " N64 ", its factors (" N64 ", " N64 "): another model",
                       NAME(m->name), t->shape[t->dimensions - 1], m->b.shape[d - 2], m->a.shape[d - 1]);
        part = t->size < EDGE ? t->size : EDGE;
        add_text(&s, t->name);
        add_shape(&s, t);
        add_number(&s, t->type, 4);
        sha256_add(&s, t->data, part);
        sha256_add(&s, t->data + t->size - part, part);
    }
    sha256_end(&s, print);
    c = texts_key(&own->file, "tinylora.base.fingerprints", &count);
    for (uint64_t i = 0; i < count && !c.failed; i++)
        if (is_hash(take_text(&c), print)) return TINYLORA_OK;
    return ERR(BASE, "its fingerprint %.16s... is none of the " N64 " that the factors were exported for",
               hex(shown, print, 32), count);
}

static int open_base(tinylora_bases *bases, const char *path, error *why) {
    gguf base;
    int status = open_gguf(&base, path, why);
    if (!status) status = check_base(bases, &base, why);
    close_gguf(&base);
    bases->own->base_fits = !status;
    return in_file(why, status, TINYLORA_E_BASE, path);
}

tinylora_status tinylora_open(tinylora_bases **out, const char *basis_path, const char *base_path,
                              tinylora_error *why) {
    struct tinylora_own *own = calloc(1, sizeof *own);
    int status;
    *out = NULL;
    if (!own) return no_memory(why, sizeof *own);
    own->bases.own = own;
    status = read_side_tensors(&own->bases, basis_path, why);
    status = in_file(why, status, TINYLORA_E_BASIS, basis_path);
    if (!status && base_path) status = open_base(&own->bases, base_path, why);
    if (!status) *out = &own->bases;
    if (status) tinylora_close(&own->bases);
    return status;
}

void tinylora_close(tinylora_bases *bases) {
    if (!bases) return;
    free(bases->own->modules);
    free(bases->own->first);
    close_gguf(&bases->own->file);
    free(bases->own);
}

tinylora_status tinylora_basis_at(const tinylora_bases *bases, uint32_t index, tinylora_basis *out,
                                  tinylora_error *why) {
    basis b = {0};
    if (index < bases->bases) basis_at(bases, index, &b);
    *out = b.known;
    if (index < bases->bases) return TINYLORA_OK;
    return ERR(ARGUMENT, "there is no basis number " N32 ": there are " N32, index, bases->bases);
}

tinylora_status tinylora_r(const tinylora_bases *bases, uint32_t index, const float *v, double max_norm,
                           float *r, tinylora_error *why) {
    basis b;
    int status = tinylora_basis_at(bases, index, &b.known, why);
    if (status) return status;
    basis_at(bases, index, &b);
    return make_r(bases, &b, v, max_norm, r, why);
}

/* ---- Frames ---- */

static const char *const DTYPES[6] = {"fp32", "bf16", "fp16", "int8", "q2", "q4"};
static const uint8_t BITS[6] = {0, 0, 0, 0, 2, 4}; /* a number, where a column of R has a scale */
static const char *const TAGS[3] = {"CRC-32", "HMAC", "Ed25519"};
static const size_t TAG_BYTES[3] = {4, 8, 64};

static size_t payload_bytes(size_t n, int dtype, size_t scales) {
    if (BITS[dtype]) return scales + (n * BITS[dtype] + 7) / 8;
    return dtype == TINYLORA_INT8 ? 3 + n + (n % 2 == 0) : n * (dtype ? 2 : 4);
}

static const char *user_of(const tinylora_policy *policy) { return policy->user ? policy->user : ""; }

/* The day of today; negative where the clock says what cannot be. */
static int today_of(const tinylora_policy *policy) {
    int64_t day = policy->today ? policy->today : (int64_t)time(NULL) / 86400 - 20454; /* 2026-01-01 */
    return day < 0 || day > LAST_DAY ? -1 : (int)day;
}

static int check_policy(const tinylora_policy *policy, error *why) {
    size_t size = 0; /* of the user's name, in characters of UTF-8 */
    for (const char *c = user_of(policy); *c; c++) size += ((unsigned char)*c & 0xC0) != 0x80;
    if (size > LONGEST_USER)
        return ERR(ARGUMENT, "the user's name has %zu characters, at most %d", size, LONGEST_USER);
    for (size_t i = 0; i < policy->key_count; i++) {
        const tinylora_key *key = policy->keys + i;
        if (key->kind == TINYLORA_HMAC ? key->size < 16 : key->kind != TINYLORA_ED25519 || key->size != 32)
            return ERR(ARGUMENT, "key %zu has %zu bytes: HMAC takes 16 or more, Ed25519 32", i, key->size);
    }
    return TINYLORA_OK;
}

/* Whether the tag `found` is that of a message; v->key is then the number of its key. */
static int check_tag(const uint8_t *message, size_t size, const uint8_t *found, const tinylora_policy *policy,
                     tinylora_vector *v, error *why) {
    size_t tried = 0;
    char shown[17];
    if (v->tag == TINYLORA_CRC32) {
        uint32_t crc = crc32(message, size), sent = (uint32_t)number_at(found, 4);
        if (crc == sent) return TINYLORA_OK;
        return ERR(CHECKSUM,
                   "the frame's checksum is %08" PRIx32 ", but its bytes give %08" PRIx32
                   ": it was damaged on its way, or is of another user than '%.80s'",
                   sent, crc, user_of(policy));
    }
    for (size_t i = 0; i < policy->key_count; i++) {
        const tinylora_key *key = policy->keys + i;
        uint8_t mac[32], differ = 0;
        if (key->kind != v->tag || (v->tag == TINYLORA_ED25519 && !policy->verify)) continue;
        tried++;
        if (v->tag == TINYLORA_ED25519) {
            differ = policy->verify(policy->verify_data, key->bytes, message, size, found) != 1;
        } else {
            hmac_sha256(key->bytes, key->size, message, size, mac);
            for (int j = 0; j < 8; j++) differ |= mac[j] ^ found[j]; /* in constant time */
        }
        if (differ) continue;
        v->key = (int)i;
        return TINYLORA_OK;
    }
    return ERR(SIGNATURE,
               "the %s tag %s verifies under none of %zu keys for user '%.60s': it was altered, or comes "
               "from someone else",
               TAGS[v->tag], hex(shown, found, 8), tried, user_of(policy));
}

/* What the first bytes of a frame say: v->dtype and v->tag, and where the basis is named. */
static int read_form(const uint8_t *frame, size_t size, const uint8_t **named, tinylora_vector *v,
                     error *why) {
    int version = size ? frame[0] >> 4 : 0, dtype = size ? frame[0] & 3 : 0, tag = size ? frame[0] >> 2 & 3 : 0;
    if (size < 8) return ERR(FRAME, "%zu bytes are not a frame: it was cut, or is something else", size);
    if (version > 3) {
        int bits = dtype == TINYLORA_INT8 ? frame[1] : 0;
        for (dtype = TINYLORA_Q4; dtype > TINYLORA_INT8 && BITS[dtype] != bits;) dtype--;
    }
    if (version < 2 || version > 5 || tag > TINYLORA_ED25519 || (version > 3 && dtype == TINYLORA_INT8))
        return ERR(FRAME, "the frame begins with 0x%02x%02x, which is none of versions 2 to 5", frame[0],
                   frame[1]);
    v->dtype = (tinylora_dtype)dtype;
    v->tag = (tinylora_tag)tag;
    *named = frame + (version > 3 ? 2 : 1);
    return TINYLORA_OK;
}

/* What stands for a vector in a mark (docs/FORMAT.md, "State files"). */
static void content_of(const uint8_t *payload, tinylora_vector *v) {
    char shown[65], begin[80];
    uint8_t hash[32];
    sha256 s;
    snprintf(begin, sizeof begin, "%s\n%s\n", hex(shown, v->basis.digest, 32), DTYPES[v->dtype]);
    sha256_begin(&s);
    sha256_add(&s, begin, strlen(begin));
    if (v->dtype >= TINYLORA_INT8)
        sha256_add(&s, v->values, 4 * (uint64_t)v->basis.n); /* as fp32 */
    else
        sha256_add(&s, payload, payload_bytes(v->basis.n, v->dtype, 0));
    sha256_end(&s, hash);
    memcpy(v->mark.content, hash, 16);
}

static int check_mark(const tinylora_mark *kept, const tinylora_vector *v, error *why) {
    static const tinylora_mark none;
    if (v->mark.sequence < kept->sequence)
        return ERR(ROLLBACK, "the frame has sequence " N32 ", but " N32 " was accepted", v->mark.sequence,
                   kept->sequence);
    if (v->mark.sequence == kept->sequence && v->key >= 0 && memcmp(kept->content, none.content, 16) &&
        memcmp(kept->content, v->mark.content, 16))
        return ERR(ROLLBACK, "another vector with the sequence " N32 " was accepted", v->mark.sequence);
    return TINYLORA_OK;
}

/* Check all of a frame of v->basis but its norm, and read v->values, which has room. `bases` is NULL unless the basis
 * is of entries. */
static int check_frame(const uint8_t *frame, size_t size, const tinylora_bases *bases,
                       const tinylora_policy *policy, tinylora_vector *v, error *why) {
    const uint32_t n = v->basis.n, bits = BITS[v->dtype], q = v->basis.rank;
    const int dtype = v->dtype, tag = v->tag, dated = frame[0] >> 4 & 1;
    const size_t sequence = bits ? 6 : 5, header = sequence + 2 + 2 * dated;
    const size_t scales = bases ? (size_t)bases->modules * q : 0;
    size_t body = header + payload_bytes(n, dtype, scales);
    uint8_t *message;
    const uint8_t *at = frame + header;
    float scale = 0;
    int today, status;
    uint32_t m = 0, end = 0; /* the module that a number is of, and where its numbers end */
    sha256 s;
    v->last_day = v->key = -1;
    if (bits && !scales)
        return ERR(FRAME, "the frame is in %s, and its basis of no entries: it was damaged", DTYPES[dtype]);
    if (size != body + TAG_BYTES[tag])
        return ERR(FRAME,
                   "the frame has %zu bytes, but " N32
                   " values in %s with %s take %zu: it was cut or padded on its way",
                   size, n, DTYPES[dtype], TAGS[tag], body + TAG_BYTES[tag]);
    if (dtype == TINYLORA_INT8 && n % 2 == 0 && frame[body - 1])
        return ERR(FRAME, "the byte that fills the frame up is 0x%02x, expected 0", frame[body - 1]);
    if ((uint64_t)n * bits % 8 && frame[body - 1] >> (uint64_t)n * bits % 8)
        return ERR(FRAME, "the last byte 0x%02x is not filled up with zeros", frame[body - 1]);
    for (size_t i = 0; bits && i < scales; i++)
        if (at[i] >= 0xF8)
            return ERR(FRAME, "the scale of module %zu, column %zu is not finite", i / q, i % q);
    v->mark.sequence = (uint32_t)number_at(frame + sequence, 2);
    if (dated) v->last_day = (int)number_at(frame + sequence + 2, 2);

    message = malloc(64 + body); /* the user's hash, the basis's digest, the frame before its tag */
    if (!message) return no_memory(why, 64 + body);
    sha256_begin(&s);
    sha256_add(&s, "tinylora stream 2\n", 18);
    sha256_add(&s, user_of(policy), strlen(user_of(policy)));
    sha256_end(&s, message);
    memcpy(message + 32, v->basis.digest, 32);
    memcpy(message + 64, frame, body);
    status = check_tag(message, 64 + body, frame + body, policy, v, why);
    free(message);
    if (status) return status;
    if (tag == TINYLORA_CRC32 && policy->keys)
        return ERR(SIGNATURE, "the frame has a checksum, and needs one of %zu keys", policy->key_count);
    today = dated ? today_of(policy) : 0;
    if (today < 0)
        return ERR(EXPIRED, "the frame has a last day, and the clock says none from 2026 to 2205: set it");
    if (dated && today > v->last_day)
        return ERR(EXPIRED, "the last day is %d, and today is %d (since 2026-01-01)", v->last_day, today);

    if (dtype == TINYLORA_INT8) {
        scale = float_of((uint32_t)number_at(at, 3) << 8);
        at += 3;
    }
    for (uint32_t i = 0; i < n; i++) {
        float value = 0;
        if (dtype == TINYLORA_FP32) value = f32_at(at + 4 * (size_t)i);
        if (dtype == TINYLORA_BF16) value = float_of((uint32_t)number_at(at + 2 * (size_t)i, 2) << 16);
        if (dtype == TINYLORA_FP16) value = f16_at(at + 2 * (size_t)i);
        if (dtype == TINYLORA_INT8) value = scale * (float)(int8_t)at[i] + 0.0f; /* no zero has a sign */
        if (bits) { /* a scale is the upper bits of an f16, without its sign */
            uint64_t bit = (uint64_t)i * bits, code = at[scales + bit / 8] >> bit % 8;
            float level = (float)(code & ((1u << bits) - 1)) - (float)(1u << bits) / 2 + 0.5f;
            uint8_t upper, half[2];
            if (i == end) end += rows_of(bases, m++, v->basis.outputs) * q;
            upper = at[(size_t)(m - 1) * q + i % q];
            half[0] = (uint8_t)(upper << 7);
            half[1] = (uint8_t)(upper >> 1);
            value = f16_at(half) * level + 0.0f;
        }
        if (!isfinite(value)) return ERR(VALUES, "value " N32 " of the vector is %g", i, value);
        v->values[i] = value;
    }
    if (v->key >= 0) content_of(frame + header, v);
    return TINYLORA_OK;
}

static const tinylora_mark *mark_of(const tinylora_policy *policy, const tinylora_vector *v) {
    return v->key < 0 ? &policy->mark : &policy->keys[v->key].mark;
}

static int read_vector(tinylora_vector *v, const tinylora_bases *bases, const uint8_t *frame, size_t size,
                       const tinylora_policy *policy, error *why) {
    uint32_t i = 0;
    size_t entries;
    const uint8_t *named = NULL;
    char wanted[9], own[9];
    basis b;
    int status = check_policy(policy, why);
    if (!status) status = read_form(frame, size, &named, v, why);
    if (status) return status;
    for (; i < bases->bases; i++) {
        basis_at(bases, i, &b);
        if (!memcmp(b.known.digest, named, 4)) break;
    }
    if (i == bases->bases)
        return ERR(UNKNOWN, "the frame is for basis %s, none of the " N32 " of factors %s: another model's",
                   hex(wanted, named, 4), bases->bases, hex(own, bases->digest, 4));
    entries = (size_t)bases->modules * b.known.outputs * b.known.rank;
    v->basis = b.known;
    v->values = malloc(b.known.n * sizeof *v->values);
    v->r = malloc(entries * sizeof *v->r);
    if (!v->values || !v->r) return no_memory(why, (b.known.n + (uint64_t)entries) * sizeof *v->r);
    status = check_frame(frame, size, b.kind == ENTRIES ? bases : NULL, policy, v, why);
    if (!status) status = make_r(bases, &b, v->values, policy->max_norm, v->r, why);
    return status ? status : check_mark(mark_of(policy, v), v, why);
}

tinylora_status tinylora_read(tinylora_vector *out, const tinylora_bases *bases, const void *frame,
                              size_t size, const tinylora_policy *policy, tinylora_error *why) {
    int status;
    memset(out, 0, sizeof *out);
    status = read_vector(out, bases, frame, size, policy, why);
    if (status) tinylora_vector_free(out);
    return status;
}

tinylora_status tinylora_accept(tinylora_policy *policy, const tinylora_vector *vector, tinylora_error *why) {
    int status;
    if (vector->key >= 0 && (size_t)vector->key >= policy->key_count)
        return ERR(ARGUMENT, "it is of key %d, and the policy has %zu", vector->key, policy->key_count);
    status = check_mark(mark_of(policy, vector), vector, why);
    if (!status) *(vector->key < 0 ? &policy->mark : &policy->keys[vector->key].mark) = vector->mark;
    return status;
}

void tinylora_vector_free(tinylora_vector *vector) {
    free(vector->values);
    free(vector->r);
    memset(vector, 0, sizeof *vector);
}

/* ---- Texts (docs/FORMAT.md, "Text and QR codes") ---- */

static int blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

tinylora_status tinylora_text(const char *text, uint8_t *out, size_t room, size_t *size,
                              tinylora_error *why) {
    static const char base64url[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const char *scheme = "tinylora:", *begin = text, *c = text;
    size_t n = 0, hexadecimal = 0, ends = 0, done = 0;
    uint32_t bits = 0, have = 0, width = 6;
    *size = 0;
    for (; *c && *scheme && (blank(*c) || tolower((unsigned char)*c) == *scheme); c++) scheme += !blank(*c);
    if (!*scheme) begin = c;
    for (c = begin; *c; c++) { /* n digits, and `=` at the end */
        if (blank(*c)) continue;
        n += *c == '=' ? 0 : ends + 1;
        ends = *c == '=' ? ends + 1 : 0;
        hexadecimal += isxdigit((unsigned char)*c) != 0;
    }
    if (hexadecimal == n && !ends && n % 2 == 0) width = 4;
    if (!n || n > LONGEST_TEXT || (width == 6 && (n % 4 == 1 || (hexadecimal == n && !ends && n > 16))))
        return ERR(FRAME, "a text of %zu digits is empty, too long, or was cut", n);
    if (n * width / 8 > room)
        return ERR(ARGUMENT, "the text has %zu bytes, and there is room for %zu", n * width / 8, room);
    for (c = begin; done < n; c++) {
        const char *digits = width == 4 ? "0123456789abcdef" : base64url;
        const char *found = strchr(digits, width == 4 ? tolower((unsigned char)*c) : *c);
        if (blank(*c)) continue;
        if (!found) return ERR(FRAME, "character %zu is 0x%02x: no base64url", done, (unsigned char)*c);
        bits = (bits << width | (uint32_t)(found - digits)) & 0xFFF;
        done++;
        if ((have += width) >= 8) out[(*size)++] = (uint8_t)(bits >> (have -= 8));
    }
    if (!(bits & ((1u << have) - 1))) return TINYLORA_OK;
    *size = 0;
    return ERR(FRAME, "a text of %zu digits was cut", n);
}

/* ---- llama.cpp ---- */

#ifdef TINYLORA_LLAMA
#include <llama.h>

/* A GGUF file in the making. It is made twice: first without bytes, for its size. */
typedef struct {
    uint8_t *bytes;
    uint64_t used;
} image;

static void put(image *to, const void *data, uint64_t size) {
    if (to->bytes) memcpy(to->bytes + to->used, data, (size_t)size);
    to->used += size;
}

static void put_number(image *to, uint64_t value, uint64_t size) { put(to, &value, size); }

static void put_text(image *to, text t, const char *suffix) {
    put_number(to, t.size + strlen(suffix), 8);
    put(to, t.at, t.size);
    put(to, suffix, strlen(suffix));
}

static void put_key(image *to, const char *key, text value) {
    put_text(to, text_of(key), "");
    put_number(to, STRING, 4);
    put_text(to, value, "");
}

static void pad(image *to) {
    while (to->used % 32) put_number(to, 0, 1);
}

static float item(const tensor *t, uint64_t i) {
    return t->type == F32 ? f32_at(t->data + 4 * i) : f16_at(t->data + 2 * i);
}

/* Put the values of an F32 tensor of high x wide: rows of A with zeros behind them, or the first columns of B; with R
 * (p x wide), B's first p columns times R. */
static void put_floats(image *to, const tensor *t, uint64_t high, uint64_t wide, const float *r, uint64_t p) {
    uint64_t stacked = t->dimensions == 3 ? t->shape[0] : 1;
    uint64_t rows = t->shape[t->dimensions - 2], columns = t->shape[t->dimensions - 1];
    uint64_t sum = p < columns ? p : columns; /* a small layer has fewer than p */
    float *out = to->bytes ? (float *)(void *)(to->bytes + to->used) : NULL; /* at a multiple of 32 bytes */
    for (uint64_t i = 0; out && i < stacked * high; i++, out += wide) {
        uint64_t row = i % high, start = (i / high * rows + row) * columns;
        for (uint64_t column = 0; column < wide; column++) {
            out[column] = r || row >= rows ? 0 : item(t, start + column);
            for (uint64_t l = 0; r && l < sum; l++) out[column] += item(t, start + l) * r[l * wide + column];
        }
    }
    to->used += 4 * stacked * high * wide;
    pad(to);
}

static void put_entry(image *to, const module *m, int is_b, uint64_t k, uint64_t *offset) {
    const tensor *t = is_b ? &m->b : &m->a;
    uint64_t stacked = t->dimensions == 3 ? t->shape[0] : 1;
    uint64_t high = is_b ? t->shape[t->dimensions - 2] : k, wide = is_b ? k : t->shape[t->dimensions - 1];
    put_text(to, m->name, is_b ? ".lora_b" : ".lora_a");
    put_number(to, t->dimensions, 4);
    put_number(to, wide, 8);
    put_number(to, high, 8);
    if (t->dimensions == 3) put_number(to, stacked, 8);
    put_number(to, F32, 4);
    put_number(to, *offset, 8);
    *offset += (4 * stacked * high * wide + 31) / 32 * 32;
}

/* The rank of a module in an adapter, at most its rows: q with R folded in, else room for both A x and R A x. */
static uint64_t rank_of(const module *m, uint32_t p, uint32_t q, const float *r) {
    uint32_t rank = r || p < q ? q : p;
    return rank < m->rows ? rank : m->rows;
}

static void put_adapter(image *to, const tinylora_bases *bases, uint32_t p, uint32_t q, const float *r) {
    const struct tinylora_own *own = bases->own;
    uint64_t offset = 0;
    put(to, "GGUF", 4);
    put_number(to, 3, 4);
    put_number(to, 2 * (uint64_t)bases->modules, 8);
    put_number(to, 4, 8);
    put_key(to, "general.architecture", own->architecture);
    put_key(to, "general.type", text_of("adapter"));
    put_key(to, "adapter.type", text_of("lora"));
    put_text(to, text_of("adapter.lora.alpha"), "");
    put_number(to, 6, 4); /* an f32 */
    put_number(to, 0, 4); /* 0: the adapter's scale is used as it is */
    for (uint32_t i = 0; i < 2 * bases->modules; i++) {
        const module *m = own->modules + i / 2;
        put_entry(to, m, i % 2, rank_of(m, p, q, r), &offset);
    }
    pad(to);
    for (uint32_t i = 0; i < bases->modules; i++) {
        const module *m = own->modules + i;
        uint64_t rank = rank_of(m, p, q, r);
        put_floats(to, &m->a, rank, m->a.shape[m->a.dimensions - 1], NULL, 0);
        put_floats(to, &m->b, m->b.shape[m->b.dimensions - 2], rank, r ? r + (uint64_t)i * p * q : NULL, p);
    }
}

/* The image as a file, for llama.cpp to read. */
static FILE *file_of(const image *made) {
#ifdef _WIN32
    FILE *file = tmpfile();
    if (file) fwrite(made->bytes, 1, (size_t)made->used, file); /* llama.cpp refuses what is cut */
    if (file) rewind(file);
    return file;
#else
    return fmemopen(made->bytes, (size_t)made->used, "rb");
#endif
}

tinylora_status tinylora_adapter(struct llama_adapter_lora **out, struct llama_model *model,
                                 const tinylora_bases *bases, const tinylora_basis *basis, const float *r,
                                 tinylora_error *why) {
    const struct tinylora_own *own = bases->own;
    const uint32_t p = basis ? basis->outputs : bases->outputs, q = basis ? basis->rank : bases->rank;
    char architecture[64] = "";
    image made = {NULL, 0};
    FILE *file;
    *out = NULL;
    if (!own->base_fits) return ERR(ARGUMENT, "no base was checked: name it to tinylora_open");
    if (p < 1 || p > bases->outputs || q < 1 || q > bases->rank)
        return ERR(ARGUMENT, "R is " N32 " x " N32 ", and the factors take " N32 " x " N32 " at most", p, q,
                   bases->outputs, bases->rank);
    llama_model_meta_val_str(model, "general.architecture", architecture, sizeof architecture);
    if (!is(own->architecture, architecture))
        return ERR(BASE, "the model is of architecture '%s', and the factors are of '%.*s'", architecture,
                   NAME(own->architecture));
    put_adapter(&made, bases, p, q, r);
    if (made.used <= SIZE_MAX) made.bytes = malloc((size_t)made.used);
    if (!made.bytes) return no_memory(why, made.used);
    made.used = 0;
    put_adapter(&made, bases, p, q, r);
    file = file_of(&made);
    if (file) {
        *out = llama_adapter_lora_init_from_file_ptr(model, file);
        fclose(file);
    }
    free(made.bytes);
    if (!file) return ERR(SYSTEM, "an adapter of " N64 " bytes cannot be handed on", made.used);
    if (*out) return TINYLORA_OK;
    return ERR(BASE, "llama.cpp refused the adapter of " N32 " modules, the first %.*s: its log says why",
               bases->modules, NAME(own->modules[0].name));
}

static int by_order(const void *a, const void *b) { return comes_before(a, b) ? -1 : comes_before(b, a); }

/* The module that has A; NULL: none. A copy for another device is called CUDA0#blk.0.attn_q.weight.lora_a#0. */
static const module *module_of(const tinylora_bases *bases, const struct ggml_tensor *a) {
    const char *end = a ? strstr(a->name, ".lora_a") : NULL, *copy = end ? strchr(a->name, '#') : NULL;
    module wanted;
    if (!end) return NULL;
    wanted.name.at = (const uint8_t *)(copy && copy < end ? copy + 1 : a->name);
    wanted.name.size = (uint64_t)((const uint8_t *)end - wanted.name.at);
    if (!read_name(&wanted)) return NULL;
    return bsearch(&wanted, bases->own->modules, bases->modules, sizeof wanted, by_order);
}

/* Replace x by R x, with zeros behind it. */
static void apply(float *x, uint64_t outputs, const tinylora_vector *v, uint64_t number) {
    float old[LARGEST_RANK];
    const uint64_t p = v ? v->basis.outputs : 0, q = v ? v->basis.rank : 0;
    const float *r = v ? v->r + number * p * q : NULL;
    for (uint64_t j = 0; j < q; j++) old[j] = x[j];
    for (uint64_t i = 0; i < outputs; i++) {
        x[i] = 0;
        for (uint64_t j = 0; i < p && j < q; j++) x[i] += r[i * q + j] * old[j];
    }
}

static int has_logits(const struct llama_batch *batch, int token) {
    return batch->logits ? batch->logits[token] : token == batch->n_tokens - 1;
}

/* Replace A x of each token by R A x; an expert's token has several columns. */
static int apply_rows(const tinylora_rows *rows, struct ggml_tensor *node, const module *m, error *why) {
    const struct llama_batch *batch = rows->batch;
    const module *modules = rows->bases->own->modules;
    const uint64_t outputs = (uint64_t)node->ne[0], columns = (uint64_t)ggml_nrows(node);
    const int tokens = (int)(m->a.dimensions == 3 ? node->ne[2] : (int64_t)columns);
    const size_t size = ggml_nbytes(node);
    int host, token = 0, wanted = 0, status = TINYLORA_OK;
    float *x = node->data;
    if (!tokens) return TINYLORA_OK;
    for (int i = 0; batch && i < batch->n_tokens; i++) wanted += has_logits(batch, i);
    /* In the last block llama.cpp leaves out tokens without logits. */
    if (batch && tokens != batch->n_tokens &&
        (tokens != wanted || m->block != modules[rows->bases->modules - 1].block))
        return ERR(ARGUMENT, "llama.cpp evaluates %d of %d tokens at once: set kv_unified, and n_ubatch to n_batch",
                   tokens, (int)batch->n_tokens);
    if (node->type != GGML_TYPE_F32 || !ggml_is_contiguous(node) || outputs > m->rows)
        return ERR(BASE, "llama.cpp evaluates %.*s in another way than is known, or with another adapter",
                   NAME(m->name));
    host = ggml_backend_buffer_is_host(node->buffer);
    if (!host) x = malloc(size);
    if (!x) return no_memory(why, size);
    if (!host) ggml_backend_tensor_get(node, x, 0, size);
    for (uint64_t i = 0, each = columns / (uint64_t)tokens; i < columns && !status; i++) {
        const tinylora_vector *v;
        if (i && i % each == 0) token++;
        while (batch && tokens < batch->n_tokens && !has_logits(batch, token)) token++;
        v = rows->vectors[batch && batch->seq_id ? batch->seq_id[token][0] : 0];
        if (v && (v->basis.rank > outputs || rows_of(rows->bases, (uint32_t)(m - modules), v->basis.outputs) > outputs))
            status = ERR(ARGUMENT, "%s does not fit into an adapter of rank " N64 ": make a larger one",
                         v->basis.descriptor, outputs);
        else
            apply(x + i * outputs, outputs, v, (uint64_t)(m - modules));
    }
    if (!host) ggml_backend_tensor_set(node, x, 0, size);
    if (!host) free(x);
    return status;
}

bool tinylora_eval(struct ggml_tensor *node, bool ask, void *data) {
    tinylora_rows *rows = data;
    const module *m = module_of(rows->bases, node->src[0]);
    return ask ? m != NULL : m && !apply_rows(rows, node, m, &rows->why);
}
#endif
