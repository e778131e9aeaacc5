package @ID@;

/** Where a model runs. */
public enum Accelerator {
    CPU,
    GPU,
    NPU
}
