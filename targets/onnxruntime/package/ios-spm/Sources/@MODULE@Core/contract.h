#ifndef @C_PREFIX@_CONTRACT_H
#define @C_PREFIX@_CONTRACT_H

#include <stddef.h>
#include <stdint.h>

/* What edgekit.json says; the values are in contract.c. */

enum { EK_FLOAT32, EK_UINT8, EK_INT8, EK_INT32, EK_INT64, EK_BOOL };
enum { EK_NEAREST, EK_BOX, EK_BILINEAR, EK_BICUBIC };
enum { EK_NONE, EK_SOFTMAX, EK_SIGMOID, EK_BOXES };
enum { EK_XYXY, EK_YXYX, EK_CXCYWH };

typedef struct {
    const char *name;
    int dtype;
    size_t rank;
    int64_t shape[8];
    int quantized;
    double scale;
    int zero_point;
} ek_tensor;

typedef struct {
    int input; /* index, or -1: the model takes no image */
    int edge;  /* shortest edge to resize to, or 0 */
    int resize[2];
    int pad, pad_value;
    int filter, antialias;
    int crop[2], crop_half_even;
    int gray, bgr, channels_first;
    double scale, mean[3], std[3];
} ek_image;

typedef struct {
    int kind; /* or -1: none is declared */
    size_t output, boxes;
    int format, columns, activation, background;
    double height, width, min_score, max_overlap;
    size_t most;
} ek_result;

typedef struct {
    const char *name;
    const char *label;
    const char *image; /* or NULL */
    int height, width;
    const char *const *inputs;
    const char *const *outputs;
    const char *result; /* or NULL */
    size_t result_size; /* of its float32 values */
    const char *placed; /* the same with boxes in pixels of the image, or NULL */
} ek_golden;

extern const char *const @C_PREFIX@_model_file;
extern const char *const @C_PREFIX@_labels_file; /* or NULL */
extern const double @C_PREFIX@_tolerance; /* of the CPU */
extern const size_t @C_PREFIX@_inputs_size, @C_PREFIX@_outputs_size, @C_PREFIX@_golden_size;
extern const ek_tensor @C_PREFIX@_inputs[], @C_PREFIX@_outputs[];
extern const ek_image @C_PREFIX@_image;
extern const ek_result @C_PREFIX@_after;
extern const ek_golden @C_PREFIX@_golden[];

/* Internal: see preprocess.c. */
int @C_PREFIX@_prepare(const ek_image *image, const ek_tensor *spec, const uint8_t *rgb, int height, int width,
                       void *fed, char *error, size_t error_size);
size_t @C_PREFIX@_width(int dtype);

#endif
