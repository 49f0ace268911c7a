#include "vector.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hash.h"

static const char BASE64URL[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
static const size_t TAG_BYTES[3] = {4, 8, 64};

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static int lower(char c) { return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c; }

static const char *base64url_decode(const char *text, size_t size, uint8_t *out, size_t *out_size) {
    uint32_t bits = 0;
    int have = 0;
    size_t n = 0;
    while (size && text[size - 1] == '=') size--;
    if (!size) return "empty text";
    if (size % 4 == 1) return "text cut";
    for (size_t i = 0; i < size; i++) {
        const char *found = text[i] ? strchr(BASE64URL, text[i]) : NULL;
        if (!found) return "a character that is in no text form";
        bits = (bits << 6 | (uint32_t)(found - BASE64URL)) & 0xFFF;
        have += 6;
        if (have >= 8) out[n++] = (uint8_t)(bits >> (have -= 8));
    }
    if (bits & ((1u << have) - 1)) return "text cut";
    *out_size = n;
    return NULL;
}

const char *text_decode(const char *text, size_t size, uint8_t *out, size_t *out_size) {
    static const char scheme[] = "tinylora:";
    const char *error;
    size_t n = 0, hex = 0, start = 0;
    char *packed = malloc(size + 1);
    if (!packed) return "no memory";
    for (size_t i = 0; i < size; i++)
        if (!memchr(" \t\r\n", text[i], 4)) packed[n++] = text[i];
    while (start < 9 && start < n && lower(packed[start]) == scheme[start]) start++;
    start = start == 9 ? 9 : 0;
    n -= start;
    while (hex < n && hex_digit(packed[start + hex]) >= 0) hex++;
    if (n && hex == n && n % 2 == 0) {
        for (size_t i = 0; i < n / 2; i++)
            out[i] = (uint8_t)(hex_digit(packed[start + 2 * i]) << 4 | hex_digit(packed[start + 2 * i + 1]));
        *out_size = n / 2;
        error = NULL;
    } else if (hex == n && n > 16) {
        error = "text cut";
    } else {
        error = base64url_decode(packed + start, n, out, out_size);
    }
    free(packed);
    return error;
}

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static size_t payload_bytes(size_t n, int dtype) {
    if (dtype == 3) return 3 + n + (n % 2 == 0);
    return n * (dtype ? 2 : 4);
}

static float read_value(const uint8_t *at, int dtype) {
    uint32_t low = at[0] | (uint32_t)at[1] << 8;
    if (dtype == 0) return from_bits(low | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);
    if (dtype == 1) return from_bits(low << 16);
    uint32_t sign = (low & 0x8000) << 16, exponent = low >> 10 & 31, fraction = low & 0x3FF;
    if (exponent == 31) return from_bits(sign | 0x7F800000 | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)fraction / 16777216.0f; /* 2^24 */
    return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

/* The 32 bytes that bind a frame to its stream. */
static void bind(const char *stream, uint8_t out[32]) {
    static const char word[] = "tinylora stream 2\n";
    sha256 h;
    sha256_begin(&h);
    sha256_add(&h, word, strlen(word));
    if (stream) sha256_add(&h, stream, strlen(stream));
    sha256_end(&h, out);
}

/* `first` is all of the message that comes before `data`; the tag is at `found`. */
static const char *check_tag(const uint8_t *first, size_t first_size, const uint8_t *data, size_t body,
                             const uint8_t *found, int tag, const trust *trusted) {
    if (tag == TAG_CRC32) {
        uint32_t crc = crc32_of(first, first_size, data, body);
        uint32_t sent = found[0] | (uint32_t)found[1] << 8 | (uint32_t)found[2] << 16 | (uint32_t)found[3] << 24;
        return crc == sent ? NULL : "checksum";
    }
    if (tag == TAG_HMAC) {
        uint8_t mac[32], differ = 0;
        if (!trusted->hmac_key) return "no key";
        hmac_sha256(trusted->hmac_key, trusted->hmac_key_size, first, first_size, data, body, mac);
        for (int i = 0; i < 8; i++) differ |= mac[i] ^ found[i]; /* in constant time */
        return differ ? "mac" : NULL;
    }
    if (!trusted->ed25519) return "no key";
    uint8_t *message = malloc(first_size + body);
    if (!message) return "no memory";
    memcpy(message, first, first_size);
    memcpy(message + first_size, data, body);
    int verified = trusted->ed25519(message, first_size + body, found);
    free(message);
    return verified ? NULL : "signature";
}

const char *vector_check(const uint8_t *data, size_t size, size_t n, const uint8_t digest[32],
                         const trust *trusted, vector_head *head, float *values) {
    const uint8_t *at = data;
    vector_head found = {0, TAG_NONE, -1, 0, -1};
    float scale = 0;
    if (!size) return "empty";
    if (size % 2 == 0) { /* a raw payload: its length says its dtype */
        if (size >= 5 && data[0] >> 4 >= 2 && data[0] >> 4 <= 3 && !memcmp(data + 1, digest, 4)) return "frame cut";
        if (size != 4 * n && size != 2 * n) return "length";
        found.dtype = size == 4 * n ? 0 : 1;
    } else {
        const char *error;
        uint8_t first[64];
        size_t header, body;
        if (size < 7 || size > 9 + 4 * n + 64) return "length";
        found.version = data[0] >> 4;
        if (found.version < 2 || found.version > 3) return "version";
        found.dtype = data[0] & 3;
        found.tag = data[0] >> 2 & 3;
        if (found.tag > 2) return "dtype or tag";
        if (memcmp(data + 1, digest, 4)) return "basis";
        header = found.version == 3 ? 9 : 7;
        body = header + payload_bytes(n, found.dtype);
        if (size != body + TAG_BYTES[found.tag]) return "length";
        if (found.dtype == 3 && n % 2 == 0 && data[body - 1]) return "filling";
        found.sequence = data[5] | data[6] << 8;
        if (found.version == 3) found.until = data[7] | data[8] << 8;
        bind(trusted->stream, first);
        memcpy(first + 32, digest, 32);
        error = check_tag(first, 64, data, body, data + body, found.tag, trusted);
        if (error) return error;
        at += header;
    }
    if (found.tag < trusted->require) return "tag too weak";
    if (found.until >= 0 && trusted->today > found.until) return "expired";
    if (found.dtype == 3) {
        scale = from_bits((uint32_t)at[0] << 8 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 24);
        at += 3;
    }
    for (size_t i = 0; i < n; i++) {
        if (found.dtype == 3)
            values[i] = scale * (float)(at[i] < 128 ? at[i] : at[i] - 256) + 0.0f; /* no zero has a sign */
        else
            values[i] = read_value(at + i * (found.dtype ? 2 : 4), found.dtype);
        if (!isfinite(values[i])) return "not finite";
    }
    *head = found;
    return NULL;
}
