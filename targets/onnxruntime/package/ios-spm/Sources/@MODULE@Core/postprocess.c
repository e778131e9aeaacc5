/* What the outputs become, by the contract: in double, as Python's edgekit does it. */

#include "include/@MODULE@Core.h"
#include "contract.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
    size_t index; /* of the candidate: of equal scores the earlier is the better one */
    int best;
    double score, corners[4];
} candidate;

typedef struct {
    const float *values;
    size_t count, width;
    int columns;
} rows;

static size_t elements(const ek_tensor *spec) {
    size_t found = 1;
    for (size_t i = 0; i < spec->rank; i++) {
        found *= (size_t)spec->shape[i];
    }
    return found;
}

static size_t last(const ek_tensor *spec) {
    return spec->rank ? (size_t)spec->shape[spec->rank - 1] : 1;
}

static rows table(const ek_tensor *spec, const float *values, int columns) {
    size_t a = (size_t)spec->shape[spec->rank - 2], b = last(spec);
    rows found = {values, columns ? b : a, columns ? a : b, columns};
    return found;
}

static double at(const rows *r, size_t i, size_t j) {
    return r->values[r->columns ? j * r->count + i : i * r->width + j];
}

static void activate(int kind, double *values, size_t count) {
    double top = -INFINITY, sum = 0;
    for (size_t i = 0; i < count; i++) {
        if (kind == EK_SIGMOID) {
            values[i] = 1 / (1 + exp(-values[i]));
        }
        top = fmax(top, values[i]);
    }
    for (size_t i = 0; kind == EK_SOFTMAX && i < count; i++) {
        values[i] = exp(values[i] - top);
        sum += values[i];
    }
    for (size_t i = 0; kind == EK_SOFTMAX && i < count; i++) {
        values[i] /= sum;
    }
}

static double area(const double *b) {
    return fmax(b[2] - b[0], 0) * fmax(b[3] - b[1], 0);
}

/* Intersection over union; 0 for boxes without an area. */
static double overlap(const double *a, const double *b) {
    double width = fmax(fmin(a[2], b[2]) - fmax(a[0], b[0]), 0);
    double height = fmax(fmin(a[3], b[3]) - fmax(a[1], b[1]), 0);
    double all = area(a) + area(b) - width * height;
    return all > 0 ? width * height / all : 0;
}

static int better(const void *one, const void *two) {
    const candidate *a = one, *b = two;
    if (a->score != b->score) {
        return a->score > b->score ? -1 : 1;
    }
    return a->index < b->index ? -1 : 1;
}

static void place(const ek_result *r, const rows *boxes, size_t i, double *corners) {
    double a = at(boxes, i, 0), b = at(boxes, i, 1), c = at(boxes, i, 2), d = at(boxes, i, 3);
    double found[4] = {a, b, c, d};
    if (r->format == EK_CXCYWH) {
        found[0] = a - c / 2, found[1] = b - d / 2, found[2] = a + c / 2, found[3] = b + d / 2;
    } else if (r->format == EK_YXYX) {
        found[0] = b, found[1] = a, found[2] = d, found[3] = c;
    }
    for (int k = 0; k < 4; k++) {
        corners[k] = found[k] / (k % 2 ? r->height : r->width);
    }
}

static size_t candidates(const ek_result *r, const rows *boxes, const rows *scores, candidate *found) {
    size_t first = r->boxes == r->output ? 4 : 0, classes = scores->width - first, count = 0;
    double *values = malloc(sizeof *values * (classes ? classes : 1));
    for (size_t i = 0; values && i < boxes->count; i++) {
        int best = -1;
        double top = -INFINITY;
        for (size_t c = 0; c < classes; c++) {
            values[c] = at(scores, i, c + first);
        }
        activate(r->activation, values, classes);
        for (size_t c = 0; c < classes; c++) {
            if ((int)c != r->background && values[c] > top) {
                best = (int)c;
                top = values[c];
            }
        }
        if (top >= r->min_score) {
            candidate *here = &found[count++];
            here->index = i;
            here->best = best;
            here->score = top;
            place(r, boxes, i, here->corners);
        }
    }
    free(values);
    return count;
}

static size_t suppressed(const ek_result *r, candidate *best, size_t count) {
    size_t kept = 0;
    qsort(best, count, sizeof *best, better);
    for (size_t i = 0; i < count && kept < r->most; i++) {
        int hidden = 0;
        for (size_t k = 0; k < kept && !hidden; k++) {
            hidden = best[k].best == best[i].best && overlap(best[k].corners, best[i].corners) > r->max_overlap;
        }
        if (!hidden) {
            best[kept++] = best[i];
        }
    }
    return kept;
}

static size_t boxes(const ek_result *r, const float *const *outputs, double *values, size_t capacity) {
    rows corners = table(&@C_PREFIX@_outputs[r->boxes], outputs[r->boxes], r->columns);
    rows scores = table(&@C_PREFIX@_outputs[r->output], outputs[r->output], r->columns);
    candidate *found = malloc(sizeof *found * (corners.count ? corners.count : 1));
    size_t kept = 0;
    if (found) {
        kept = suppressed(r, found, candidates(r, &corners, &scores, found));
    }
    for (size_t i = 0; i < kept && 6 * i + 6 <= capacity; i++) {
        values[6 * i] = found[i].best;
        values[6 * i + 1] = found[i].score;
        for (size_t k = 0; k < 4; k++) {
            values[6 * i + 2 + k] = found[i].corners[k];
        }
    }
    free(found);
    return 6 * kept;
}

int @C_PREFIX@_result_kind(void) {
    return @C_PREFIX@_after.kind < 0 ? 0 : @C_PREFIX@_after.kind == EK_BOXES ? 2 : 1;
}

int @C_PREFIX@_result_rows(void) {
    const ek_result *r = &@C_PREFIX@_after;
    return r->kind < 0 ? 0 : (int)(elements(&@C_PREFIX@_outputs[r->output]) / last(&@C_PREFIX@_outputs[r->output]));
}

size_t @C_PREFIX@_result_size(void) {
    const ek_result *r = &@C_PREFIX@_after;
    return r->kind < 0 ? 0 : r->kind == EK_BOXES ? 6 * r->most : elements(&@C_PREFIX@_outputs[r->output]);
}

size_t @C_PREFIX@_result(const float *const *outputs, double *values, size_t capacity) {
    const ek_result *r = &@C_PREFIX@_after;
    if (r->kind < 0 || capacity < @C_PREFIX@_result_size()) {
        return 0;
    }
    if (r->kind == EK_BOXES) {
        return boxes(r, outputs, values, capacity);
    }
    const ek_tensor *spec = &@C_PREFIX@_outputs[r->output];
    size_t total = elements(spec), width = last(spec);
    for (size_t i = 0; i < total; i++) {
        values[i] = outputs[r->output][i];
    }
    for (size_t i = 0; i < total; i += width) {
        activate(r->kind, values + i, width);
    }
    return total;
}
