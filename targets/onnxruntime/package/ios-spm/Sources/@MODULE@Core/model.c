/* ONNX Runtime through its C interface, and the golden vectors. */

#include "include/@MODULE@Core.h"
#include "contract.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if __has_include(<onnxruntime/onnxruntime_c_api.h>)
#include <onnxruntime/onnxruntime_c_api.h>
#else
#include <onnxruntime_c_api.h>
#endif

struct @C_PREFIX@_model {
    const OrtApi *api;
    OrtEnv *env;
    OrtSession *session;
    OrtMemoryInfo *memory;
    char *assets;
};

static int ok(const OrtApi *api, OrtStatus *status, char *error, size_t error_size) {
    if (!status) {
        return 1;
    }
    snprintf(error, error_size, "%s", api->GetErrorMessage(status));
    api->ReleaseStatus(status);
    return 0;
}

static void *read_file(const char *assets, const char *name, size_t *size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", assets, name);
    FILE *file = fopen(path, "rb");
    if (!file) {
        return NULL;
    }
    fseek(file, 0, SEEK_END);
    long length = ftell(file);
    rewind(file);
    void *data = length > 0 ? malloc((size_t)length) : NULL;
    *size = data ? fread(data, 1, (size_t)length, file) : 0;
    fclose(file);
    return data;
}

static size_t count(const ek_tensor *spec) {
    size_t elements = 1;
    for (size_t i = 0; i < spec->rank; i++) {
        elements *= (size_t)spec->shape[i];
    }
    return elements;
}

static size_t bytes(const ek_tensor *spec) {
    return count(spec) * @C_PREFIX@_width(spec->dtype);
}

size_t @C_PREFIX@_input_count(void) { return @C_PREFIX@_inputs_size; }
size_t @C_PREFIX@_output_count(void) { return @C_PREFIX@_outputs_size; }
size_t @C_PREFIX@_input_bytes(size_t index) { return bytes(&@C_PREFIX@_inputs[index]); }
size_t @C_PREFIX@_output_bytes(size_t index) { return bytes(&@C_PREFIX@_outputs[index]); }
size_t @C_PREFIX@_case_count(void) { return @C_PREFIX@_golden_size; }

@C_PREFIX@_model *@C_PREFIX@_load(const char *assets, char *error, size_t error_size) {
    @C_PREFIX@_model *m = calloc(1, sizeof *m);
    OrtSessionOptions *options = NULL;
    size_t size = 0;
    void *data = read_file(assets, @C_PREFIX@_model_file, &size);
    if (!m || !data) {
        snprintf(error, error_size, "%s is not in %s", @C_PREFIX@_model_file, assets);
        free(m);
        free(data);
        return NULL;
    }
    m->api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    m->assets = malloc(strlen(assets) + 1);
    if (m->assets) {
        strcpy(m->assets, assets);
    }
    int good = m->api != NULL && m->assets != NULL;
    if (!good) {
        snprintf(error, error_size, "ONNX Runtime is older than the headers that this was built with");
    }
    good = good && ok(m->api, m->api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "@NAME@", &m->env), error, error_size);
    good = good && ok(m->api, m->api->DisableTelemetryEvents(m->env), error, error_size);
    good = good && ok(m->api, m->api->CreateSessionOptions(&options), error, error_size);
    good = good && ok(m->api, m->api->SetSessionGraphOptimizationLevel(options, ORT_ENABLE_ALL), error, error_size);
    good = good && ok(m->api, m->api->CreateSessionFromArray(m->env, data, size, options, &m->session), error,
                      error_size);
    good = good && ok(m->api, m->api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &m->memory), error,
                      error_size);
    if (options) {
        m->api->ReleaseSessionOptions(options);
    }
    free(data);
    if (!good) {
        @C_PREFIX@_free(m);
        return NULL;
    }
    return m;
}

void @C_PREFIX@_free(@C_PREFIX@_model *m) {
    if (!m) {
        return;
    }
    if (m->memory) {
        m->api->ReleaseMemoryInfo(m->memory);
    }
    if (m->session) {
        m->api->ReleaseSession(m->session);
    }
    if (m->env) {
        m->api->ReleaseEnv(m->env);
    }
    free(m->assets);
    free(m);
}

int @C_PREFIX@_preprocess(const uint8_t *rgb, int height, int width, void *fed, char *error, size_t error_size) {
    if (@C_PREFIX@_image.input < 0) {
        snprintf(error, error_size, "the model takes no image");
        return 0;
    }
    const ek_tensor *spec = &@C_PREFIX@_inputs[@C_PREFIX@_image.input];
    return @C_PREFIX@_prepare(&@C_PREFIX@_image, spec, rgb, height, width, fed, error, error_size);
}

static ONNXTensorElementDataType element(int dtype) {
    switch (dtype) {
        case EK_FLOAT32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        case EK_UINT8:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
        case EK_INT8:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
        case EK_INT32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        case EK_INT64:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        default:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    }
}

static int wrap(@C_PREFIX@_model *m, const ek_tensor *spec, void *data, OrtValue **value, char *error,
                size_t error_size) {
    return ok(m->api, m->api->CreateTensorWithDataAsOrtValue(m->memory, data, bytes(spec), spec->shape, spec->rank,
                                                             element(spec->dtype), value),
              error, error_size);
}

int @C_PREFIX@_run(@C_PREFIX@_model *m, const void *const *inputs, void *const *outputs, char *error,
                   size_t error_size) {
    size_t in = @C_PREFIX@_inputs_size, out = @C_PREFIX@_outputs_size;
    OrtValue **values = calloc(in + out, sizeof *values);
    const char **names = calloc(in + out, sizeof *names);
    int good = values && names;
    for (size_t i = 0; good && i < in; i++) {
        names[i] = @C_PREFIX@_inputs[i].name;
        good = wrap(m, &@C_PREFIX@_inputs[i], (void *)inputs[i], &values[i], error, error_size);
    }
    for (size_t i = 0; good && i < out; i++) {
        names[in + i] = @C_PREFIX@_outputs[i].name;
        good = wrap(m, &@C_PREFIX@_outputs[i], outputs[i], &values[in + i], error, error_size);
    }
    good = good && ok(m->api,
                      m->api->Run(m->session, NULL, names, (const OrtValue *const *)values, in, names + in, out,
                                  values + in),
                      error, error_size);
    for (size_t i = 0; values && i < in + out; i++) {
        if (values[i]) {
            m->api->ReleaseValue(values[i]);
        }
    }
    free(values);
    free(names);
    return good;
}

static double stored(const ek_tensor *spec, const void *data, size_t i) {
    switch (spec->dtype) {
        case EK_FLOAT32:
            return ((const float *)data)[i];
        case EK_INT8:
            return ((const int8_t *)data)[i];
        case EK_INT32:
            return ((const int32_t *)data)[i];
        case EK_INT64:
            return (double)((const int64_t *)data)[i];
        default:
            return ((const uint8_t *)data)[i];
    }
}

size_t @C_PREFIX@_floats(size_t index, const void *output, float *values, size_t capacity) {
    const ek_tensor *spec = &@C_PREFIX@_outputs[index];
    size_t total = count(spec);
    for (size_t i = 0; i < total && i < capacity; i++) {
        double value = stored(spec, output, i);
        values[i] = (float)(spec->quantized ? (value - spec->zero_point) * spec->scale : value);
    }
    return total;
}

static double relative_error(const ek_tensor *spec, const void *actual, const void *expected) {
    double worst = 0, peak = 0;
    for (size_t i = 0, n = count(spec); i < n; i++) {
        double a = stored(spec, actual, i), e = stored(spec, expected, i);
        double difference = a == e ? 0 : fabs(a - e);
        if (isnan(difference)) {
            return INFINITY;
        }
        worst = fmax(worst, difference);
        peak = fmax(peak, fabs(e));
    }
    return worst == 0 ? 0 : worst / peak;
}

/* The stored tensor of a golden vector, or NULL. */
static void *golden(@C_PREFIX@_model *m, const ek_tensor *spec, const char *file) {
    size_t size = 0;
    void *data = read_file(m->assets, file, &size);
    if (data && size != bytes(spec)) {
        free(data);
        return NULL;
    }
    return data;
}

static int same_image(@C_PREFIX@_model *m, const ek_golden *g, const void *fed, char *message, size_t size) {
    size_t length = 0, wanted = @C_PREFIX@_input_bytes((size_t)@C_PREFIX@_image.input);
    uint8_t *rgb = read_file(m->assets, g->image, &length);
    void *got = malloc(wanted);
    int good = rgb && got && length == (size_t)g->height * g->width * 3 &&
               @C_PREFIX@_preprocess(rgb, g->height, g->width, got, message, size) && !memcmp(got, fed, wanted);
    if (!good) {
        snprintf(message, size, "the image does not become the tensor that the model was tested with");
    }
    free(rgb);
    free(got);
    return good;
}

/* Whether boxes, which are changed, are where they should be in the golden vector's image. */
static int same_place(@C_PREFIX@_model *m, const ek_golden *g, double *values) {
    size_t length = 0;
    float *want = read_file(m->assets, g->placed, &length);
    /* Without a box the file is empty, and cannot be told from a missing one. */
    int good = g->result_size ? want && length == g->result_size * sizeof *want : 1;
    double unit = g->height > g->width ? g->height : g->width;
    good = good && @C_PREFIX@_place(g->height, g->width, values, g->result_size);
    for (size_t i = 0; good && i < g->result_size; i++) {
        good = values[i] == want[i] || fabs(values[i] - want[i]) <= 1e-5 * unit;
    }
    free(want);
    return good;
}

/* The arithmetic alone, on the stored outputs: what the runtime makes of the inputs is judged by itself. */
static int same_result(@C_PREFIX@_model *m, const ek_golden *g, void *const *stored, char *message, size_t size) {
    size_t length = 0, out = @C_PREFIX@_outputs_size, most = @C_PREFIX@_result_size();
    float *want = read_file(m->assets, g->result, &length);
    double *got = calloc(most ? most : 1, sizeof *got);
    float **real = calloc(out, sizeof *real);
    int good = got && real && length == g->result_size * sizeof *want;
    for (size_t i = 0; good && i < out; i++) {
        size_t total = count(&@C_PREFIX@_outputs[i]);
        real[i] = malloc(total * sizeof **real + 1);
        good = real[i] && @C_PREFIX@_floats(i, stored[i], real[i], total) == total;
    }
    good = good && @C_PREFIX@_result((const float *const *)real, got, most) == g->result_size;
    for (size_t i = 0; good && i < g->result_size; i++) {
        good = got[i] == want[i] || fabs(got[i] - want[i]) <= 1e-5;
    }
    if (!good) {
        snprintf(message, size, "the outputs do not become what the post-processing contract says");
    }
    if (good && g->placed) {
        good = same_place(m, g, got);
        if (!good) {
            snprintf(message, size, "the boxes are not where they should be in the image");
        }
    }
    for (size_t i = 0; real && i < out; i++) {
        free(real[i]);
    }
    free(real);
    free(got);
    free(want);
    return good;
}

int @C_PREFIX@_self_test(@C_PREFIX@_model *m, size_t index, @C_PREFIX@_case *report) {
    const ek_golden *g = &@C_PREFIX@_golden[index];
    size_t in = @C_PREFIX@_inputs_size, out = @C_PREFIX@_outputs_size;
    void **buffers = calloc(in + 2 * out, sizeof *buffers);
    int good = buffers != NULL;
    memset(report, 0, sizeof *report);
    snprintf(report->name, sizeof report->name, "%s", g->name);
    snprintf(report->message, sizeof report->message, "the golden vector cannot be read");
    report->limit = @C_PREFIX@_tolerance;
    for (size_t i = 0; good && i < in; i++) {
        buffers[i] = golden(m, &@C_PREFIX@_inputs[i], g->inputs[i]);
        good = buffers[i] != NULL;
    }
    for (size_t i = 0; good && i < out; i++) {
        buffers[in + i] = golden(m, &@C_PREFIX@_outputs[i], g->outputs[i]);
        buffers[in + out + i] = calloc(1, bytes(&@C_PREFIX@_outputs[i]));
        good = buffers[in + i] && buffers[in + out + i];
    }
    good = good && (!g->image || same_image(m, g, buffers[@C_PREFIX@_image.input], report->message,
                                            sizeof report->message));
    good = good && @C_PREFIX@_run(m, (const void *const *)buffers, buffers + in + out, report->message,
                                  sizeof report->message);
    for (size_t i = 0; good && i < out; i++) {
        report->error =
            fmax(report->error, relative_error(&@C_PREFIX@_outputs[i], buffers[in + out + i], buffers[in + i]));
    }
    if (good && !(report->error <= report->limit)) {
        snprintf(report->message, sizeof report->message, "an output is off by %.3g of its largest value, %g is allowed",
                 report->error, report->limit);
        good = 0;
    }
    good = good && (!g->result || same_result(m, g, buffers + in, report->message, sizeof report->message));
    if (good) {
        report->message[0] = '\0';
    }
    report->passed = good;
    for (size_t i = 0; buffers && i < in + 2 * out; i++) {
        free(buffers[i]);
    }
    free(buffers);
    return good;
}
