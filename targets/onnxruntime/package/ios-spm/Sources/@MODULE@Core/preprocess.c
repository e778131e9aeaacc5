/* The preprocessing contract: an RGB image becomes the tensor that the model is fed.

   Same arithmetic, bit for bit, as edgekit/preprocess/contract.py and edgekit/preprocess/resample.py: integer resizing with
   22-bit weights, then one table of 256 values a channel computed in double precision. */

#include "include/@MODULE@Core.h"
#include "contract.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Fused multiply-add would round once where the contract rounds twice. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#define PRECISION_BITS 22

typedef struct {
    uint8_t *data;
    int height, width, channels;
} pixels;

static int made(pixels *out, int height, int width, int channels) {
    *out = (pixels){calloc((size_t)height * width, (size_t)channels), height, width, channels};
    return out->data != NULL;
}

static double weight_at(int filter, double x) {
    double distance = fabs(x);
    if (filter == EK_BOX) {
        return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    }
    if (filter == EK_BILINEAR) {
        return distance < 1.0 ? 1.0 - distance : 0.0;
    }
    if (distance < 1.0) {
        return (1.5 * distance - 2.5) * distance * distance + 1.0;
    }
    return distance < 2.0 ? ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0 : 0.0;
}

/* The weights of one target position, from the source position `first` on; gives their number. */
static int window(const ek_image *c, int source, int target, int position, int *first, double *scratch,
                  int32_t *fixed) {
    double scale = (double)source / target;
    double stretch = c->antialias && scale > 1.0 ? scale : 1.0;
    double radius = c->filter == EK_BOX ? 0.5 : c->filter == EK_BILINEAR ? 1.0 : 2.0;
    double support = radius * stretch, shrink = 1.0 / stretch, total = 0.0;
    double center = (position + 0.5) * scale;
    int start = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
    *first = start > 0 ? start : 0;
    last = last < source ? last : source;
    int count = last - *first;
    for (int x = 0; x < count; x++) {
        scratch[x] = weight_at(c->filter, (x + *first - center + 0.5) * shrink);
        total += scratch[x];
    }
    for (int x = 0; x < count; x++) {
        double weight = total != 0.0 ? scratch[x] / total : scratch[x];
        double scaled = weight * (1 << PRECISION_BITS);
        fixed[x] = (int32_t)(weight < 0 ? scaled - 0.5 : scaled + 0.5);
    }
    return count;
}

static uint8_t weighted(const uint8_t *data, size_t step, const int32_t *weights, int count) {
    int32_t sum = 1 << (PRECISION_BITS - 1);
    for (int k = 0; k < count; k++) {
        sum += data[(size_t)k * step] * weights[k];
    }
    sum >>= PRECISION_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* One axis: the image is `outer` rows of `source` positions of `inner` bytes. */
static int one_pass(const ek_image *c, const uint8_t *in, uint8_t *out, int outer, int source, int target,
                    size_t inner) {
    double *scratch = malloc(sizeof(double) * (size_t)(source + 4));
    int32_t *weights = malloc(sizeof(int32_t) * (size_t)(source + 4));
    int ok = scratch && weights;
    for (int position = 0; ok && position < target; position++) {
        int first, count = window(c, source, target, position, &first, scratch, weights);
        for (int row = 0; row < outer; row++) {
            const uint8_t *from = in + ((size_t)row * source + first) * inner;
            uint8_t *to = out + ((size_t)row * target + position) * inner;
            for (size_t i = 0; i < inner; i++) {
                to[i] = weighted(from + i, inner, weights, count);
            }
        }
    }
    free(scratch);
    free(weights);
    return ok;
}

static int nearest(const pixels *in, pixels *out) {
    for (int y = 0; y < out->height; y++) {
        int sy = (int)((2LL * y + 1) * in->height / (2LL * out->height));
        for (int x = 0; x < out->width; x++) {
            int sx = (int)((2LL * x + 1) * in->width / (2LL * out->width));
            memcpy(out->data + ((size_t)y * out->width + x) * in->channels,
                   in->data + ((size_t)sy * in->width + sx) * in->channels, (size_t)in->channels);
        }
    }
    return 1;
}

/* Takes `in` and frees it. */
static int resize(const ek_image *c, pixels *in, int height, int width) {
    pixels wide = {0}, out = {0};
    int ok = 1;
    if (c->filter == EK_NEAREST) {
        ok = made(&out, height, width, in->channels) && nearest(in, &out);
        free(in->data);
        *in = out;
        return ok;
    }
    if (in->width != width) {
        ok = made(&wide, in->height, width, in->channels) &&
             one_pass(c, in->data, wide.data, in->height, in->width, width, (size_t)in->channels);
        free(in->data);
        *in = wide;
    }
    if (ok && in->height != height) {
        ok = made(&out, height, width, in->channels) &&
             one_pass(c, in->data, out.data, 1, in->height, height, (size_t)width * in->channels);
        free(in->data);
        *in = out;
    }
    return ok;
}

static void shortest_edge(int edge, int height, int width, int *h, int *w) {
    *h = height <= width ? edge : (int)((int64_t)edge * height / width);
    *w = height <= width ? (int)((int64_t)edge * width / height) : edge;
}

/* The largest size of an image's shape that fits. */
static void inside(int height, int width, int to_height, int to_width, int *h, int *w) {
    *h = to_height, *w = to_width;
    if ((int64_t)to_width * height <= (int64_t)to_height * width) {
        *h = (int)((2LL * height * to_width + width) / (2LL * width));
        *h = *h > 1 ? *h : 1;
    } else {
        *w = (int)((2LL * width * to_height + height) / (2LL * height));
        *w = *w > 1 ? *w : 1;
    }
}

static int padded(const ek_image *c, pixels *in, int height, int width) {
    int h, w;
    inside(in->height, in->width, height, width, &h, &w);
    pixels out;
    if (!resize(c, in, h, w) || !made(&out, height, width, in->channels)) {
        return 0;
    }
    memset(out.data, c->pad_value, (size_t)height * width * in->channels);
    int top = (height - h) / 2, left = (width - w) / 2;
    for (int y = 0; y < h; y++) {
        memcpy(out.data + ((size_t)(y + top) * width + left) * in->channels,
               in->data + (size_t)y * w * in->channels, (size_t)w * in->channels);
    }
    free(in->data);
    *in = out;
    return 1;
}

static int resized(const ek_image *c, pixels *in) {
    if (c->edge) {
        int h, w;
        shortest_edge(c->edge, in->height, in->width, &h, &w);
        return resize(c, in, h, w);
    }
    if (!c->resize[0]) {
        return 1;
    }
    return c->pad ? padded(c, in, c->resize[0], c->resize[1]) : resize(c, in, c->resize[0], c->resize[1]);
}

static int margin(const ek_image *c, int whole) {
    int half = whole / 2;
    return c->crop_half_even && whole % 2 ? half + half % 2 : half;
}

static int cropped(const ek_image *c, pixels *in) {
    int height = c->crop[0], width = c->crop[1];
    pixels out;
    if (!made(&out, height, width, in->channels)) {
        return 0;
    }
    int top = margin(c, in->height - height), left = margin(c, in->width - width);
    for (int y = 0; y < height; y++) {
        memcpy(out.data + (size_t)y * width * in->channels,
               in->data + ((size_t)(y + top) * in->width + left) * in->channels, (size_t)width * in->channels);
    }
    free(in->data);
    *in = out;
    return 1;
}

static void fill(const ek_image *c, const ek_tensor *spec, const pixels *in, void *fed) {
    double low = spec->dtype == EK_INT8 ? -128 : 0, high = spec->dtype == EK_INT8 ? 127 : 255;
    size_t plane = (size_t)in->height * in->width, channels = (size_t)in->channels;
    for (size_t channel = 0; channel < channels; channel++) {
        float real[256];
        uint8_t stored[256];
        for (int v = 0; v < 256; v++) {
            double value = (v * c->scale - c->mean[channel]) / c->std[channel];
            real[v] = (float)value;
            if (spec->quantized) {
                value = rint(value / spec->scale) + spec->zero_point;
            }
            value = fmin(fmax(rint(value), low), high);
            stored[v] = (uint8_t)(int)value;
        }
        size_t source = c->bgr ? channels - 1 - channel : channel;
        for (size_t i = 0; i < plane; i++) {
            size_t at = c->channels_first ? channel * plane + i : i * channels + channel;
            uint8_t pixel = in->data[i * channels + source];
            if (spec->dtype == EK_FLOAT32) {
                ((float *)fed)[at] = real[pixel];
            } else {
                ((uint8_t *)fed)[at] = stored[pixel];
            }
        }
    }
}

static int copied(const ek_image *c, const uint8_t *rgb, int height, int width, pixels *in) {
    if (!made(in, height, width, c->gray ? 1 : 3)) {
        return 0;
    }
    size_t count = (size_t)height * width;
    if (!c->gray) {
        memcpy(in->data, rgb, count * 3);
        return 1;
    }
    for (size_t i = 0; i < count; i++) {
        in->data[i] =
            (uint8_t)((rgb[3 * i] * 19595 + rgb[3 * i + 1] * 38470 + rgb[3 * i + 2] * 7471 + 0x8000) >> 16);
    }
    return 1;
}

int @C_PREFIX@_prepare(const ek_image *c, const ek_tensor *spec, const uint8_t *rgb, int height, int width,
                       void *fed, char *error, size_t error_size) {
    pixels in = {0};
    if (height < 1 || width < 1) {
        snprintf(error, error_size, "an image of %d x %d pixels", height, width);
        return 0;
    }
    int ok = copied(c, rgb, height, width, &in) && resized(c, &in);
    if (ok && c->crop[0] && (in.height < c->crop[0] || in.width < c->crop[1])) {
        snprintf(error, error_size, "an image of %d x %d is smaller than the crop of %d x %d", in.height, in.width,
                 c->crop[0], c->crop[1]);
        free(in.data);
        return 0;
    }
    ok = ok && (!c->crop[0] || cropped(c, &in));
    if (ok) {
        fill(c, spec, &in, fed);
    } else {
        snprintf(error, error_size, "out of memory");
    }
    free(in.data);
    return ok;
}

int @C_PREFIX@_place(int height, int width, double *values, size_t total) {
    const ek_image *c = &@C_PREFIX@_image;
    int scaled[2] = {height, width}, begin[2], size[2];
    if (c->input < 0 || @C_PREFIX@_after.kind != EK_BOXES || height < 1 || width < 1) {
        return 0;
    }
    if (c->edge) {
        shortest_edge(c->edge, height, width, &scaled[0], &scaled[1]);
    } else if (c->resize[0] && c->pad) {
        inside(height, width, c->resize[0], c->resize[1], &scaled[0], &scaled[1]);
    } else if (c->resize[0]) {
        memcpy(scaled, c->resize, sizeof scaled);
    }
    for (int axis = 0; axis < 2; axis++) {
        int whole = c->resize[0] && c->pad ? c->resize[axis] : scaled[axis];
        size[axis] = c->crop[0] ? c->crop[axis] : whole;
        begin[axis] = (whole - scaled[axis]) / 2 - margin(c, whole - size[axis]);
    }
    for (size_t i = 0; i < total; i++) {
        size_t column = i % 6, axis = column % 2 ? 0 : 1;
        if (column >= 2) {
            double most = axis ? width : height;
            double here = (values[i] * size[axis] - begin[axis]) * (most / scaled[axis]);
            values[i] = fmin(fmax(here, 0), most);
        }
    }
    return 1;
}

size_t @C_PREFIX@_width(int dtype) {
    return dtype == EK_INT64 ? 8 : dtype == EK_FLOAT32 || dtype == EK_INT32 ? 4 : 1;
}
