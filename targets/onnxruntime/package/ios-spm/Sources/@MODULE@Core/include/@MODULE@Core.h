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

/* What the post-processing contract makes of all outputs' real values: 0 nothing, 1 a score for each value of the
   scores' output, 2 boxes as rows of class, score, left, top, right and bottom, the best first. */
int @C_PREFIX@_result_kind(void);
/* How many rows the scores have: one where they are those of a classification. */
int @C_PREFIX@_result_rows(void);
/* The most values that a result has. */
size_t @C_PREFIX@_result_size(void);
/* Returns how many of them there are; 0 where `capacity` is less than that. */
size_t @C_PREFIX@_result(const float *const *outputs, double *values, size_t capacity);

/* Boxes that @C_PREFIX@_result gave, `total` values, as pixels of the image of this size that was fed, not beyond its edges:
   their corners are shares of the model's input before. 0 where the model has no boxes, or takes no image. */
int @C_PREFIX@_place(int height, int width, double *values, size_t total);

size_t @C_PREFIX@_case_count(void);
/* Run golden vector `index`. */
int @C_PREFIX@_self_test(@C_PREFIX@_model *model, size_t index, @C_PREFIX@_case *report);

#ifdef __cplusplus
}
#endif

#endif
