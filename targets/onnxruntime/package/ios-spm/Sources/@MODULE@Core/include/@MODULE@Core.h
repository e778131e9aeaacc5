#ifndef @C_PREFIX@_CORE_H
#define @C_PREFIX@_CORE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The numerics of @NAME@: preprocessing, ONNX Runtime, golden vectors. Functions that return int give 1 for
   success; otherwise `error` says what is wrong. One model may be used by one thread at a time. */

typedef struct @C_PREFIX@_model @C_PREFIX@_model;

typedef struct {
    char name[64];
    int passed;
    double error;
    double limit;
    char message[192];
} @C_PREFIX@_case;

/* `assets` is the folder with edgekit.json. NULL on failure. */
@C_PREFIX@_model *@C_PREFIX@_load(const char *assets, char *error, size_t error_size);
void @C_PREFIX@_free(@C_PREFIX@_model *model);

size_t @C_PREFIX@_input_count(void);
size_t @C_PREFIX@_output_count(void);
size_t @C_PREFIX@_input_bytes(size_t index);
size_t @C_PREFIX@_output_bytes(size_t index);

/* RGB, 3 bytes a pixel, to the tensor of the image input; `fed` takes as many bytes as that input has. */
int @C_PREFIX@_preprocess(const uint8_t *rgb, int height, int width, void *fed, char *error, size_t error_size);

/* One buffer for every input and output, in order, of their sizes in bytes. */
int @C_PREFIX@_run(@C_PREFIX@_model *model, const void *const *inputs, void *const *outputs, char *error,
                   size_t error_size);

/* Real values of output `index` (dequantized); `values` takes as many as `capacity`. Returns their number. */
size_t @C_PREFIX@_floats(size_t index, const void *output, float *values, size_t capacity);

/* Which output the labels name, or -1. */
int @C_PREFIX@_labelled_output(void);

size_t @C_PREFIX@_case_count(void);
/* Run golden vector `index`. */
int @C_PREFIX@_self_test(@C_PREFIX@_model *model, size_t index, @C_PREFIX@_case *report);

#ifdef __cplusplus
}
#endif

#endif
