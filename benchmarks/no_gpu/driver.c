/* The CUDA driver for a GPU that is not there, as far as Triton and torch ask it. */
#include <stdint.h>

void visattn_launch(void);

int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGet(int *device, int nth) { *device = 0; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0, *active = 1;
    return 0;
}

/* By the numbers of CUdevice_attribute in cuda.h. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: *value = 1024; break;      /* threads of a block */
    case 8: *value = 49152; break;     /* shared memory of a block */
    case 10: *value = 32; break;       /* threads of a warp */
    case 16: *value = 132; break;      /* multiprocessors */
    case 75: *value = 9; break;        /* compute capability */
    case 76: *value = 0; break;
    case 82: *value = 65536; break;    /* registers of a multiprocessor */
    case 97: *value = 232448; break;   /* shared memory of a block that asks for it */
    default: *value = 1;
    }
    return 0;
}

int cuFuncGetAttribute(int *value, int attribute, void *f) {
    *value = attribute == 0 ? 1024 : attribute == 4 ? 64 : 0;     /* threads, registers */
    return 0;
}

int cuModuleLoadData(void **module, const void *image) { *module = (void *)1; return 0; }
int cuModuleGetFunction(void **f, void *module, const char *name) { *f = (void *)1; return 0; }
int cuPointerGetAttribute(void *found, int a, uint64_t where) { *(uint64_t *)found = where; return 0; }
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "an error without a GPU"; return 0; }
int cuLaunchKernel(void) { visattn_launch(); return 0; }
int cuLaunchKernelEx(const void *c, void *f, void **a, void **extra) { visattn_launch(); return 0; }
