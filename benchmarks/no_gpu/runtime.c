/* The CUDA runtime, cuBLAS and cuDNN for a GPU that is not there: kernels do nothing.

   torch finds these functions before those of NVIDIA's libraries. Memory is that of the host, so the
   allocator of torch counts as usual. Copies to and from the host copy; kernels are counted alone.
   `libraries.c`, written by `library.py`, holds all other functions: they do nothing and succeed. */
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn_backend.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* A launch of a real driver takes some time of the host: VISATTN_LAUNCH_NS nanoseconds here. */
static long launches, nanoseconds = -1;

void visattn_launch(void) {
    if (nanoseconds < 0) nanoseconds = atol(getenv("VISATTN_LAUNCH_NS"));
    launches++;
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - begin.tv_sec) * 1000000000L + now.tv_nsec - begin.tv_nsec < nanoseconds);
}

long visattn_launches(void) { return launches; }

/* Handles that nobody looks into. */
static void *handle(void) {
    static uintptr_t last = 0x1000;
    return (void *)(last += 16);
}

/* The device: an H200. */
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return 0; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return 0; }
cudaError_t cudaSetDevice(int device) { return 0; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return 0; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return 0; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "no GPU: kernels do nothing");
    p->major = 9;
    p->totalGlobalMem = 140ul << 30;
    p->multiProcessorCount = 132;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = 232448;
    p->sharedMemPerMultiprocessor = 233472;
    p->l2CacheSize = 50 << 20;
    p->maxBlocksPerMultiProcessor = 32;
    p->unifiedAddressing = p->concurrentKernels = 1;
    return 0;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 1;
    }
    return 0;
}

const char *cudaGetErrorString(cudaError_t error) { return "an error without a GPU"; }
const char *cudaGetErrorName(cudaError_t error) { return "an error without a GPU"; }

/* torch then does without the function. */
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
    *f = 0;
    if (result) *result = cudaDriverEntryPointSymbolNotFound;
    return 0;
}

/* Memory. Pages that nobody touches take none. */
static cudaError_t reserve(void **where, size_t size) {
    *where = mmap(0, size + !size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return *where == MAP_FAILED ? cudaErrorMemoryAllocation : 0;
}

cudaError_t cudaMalloc(void **where, size_t size) { return reserve(where, size); }
cudaError_t cudaMallocAsync(void **where, size_t size, cudaStream_t s) { return reserve(where, size); }
cudaError_t cudaMallocHost(void **where, size_t size) { *where = malloc(size); return 0; }
cudaError_t cudaHostAlloc(void **where, size_t size, unsigned f) { *where = malloc(size); return 0; }
cudaError_t cudaFreeHost(void *where) { free(where); return 0; }

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *available = *total = 140ul << 30;
    return 0;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *where) {
    memset(found, 0, sizeof *found);
    found->type = cudaMemoryTypeDevice;
    return 0;
}

/* On a stream that is recorded, nothing waits for the host or reads its memory. */
static cudaStream_t recorded;

static cudaError_t unless(int forbidden) { return forbidden ? cudaErrorStreamCaptureUnsupported : 0; }
cudaError_t cudaDeviceSynchronize(void) { return unless(!!recorded); }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return unless(s && s == recorded); }

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    memcpy(to, from, size);
    return unless(!!recorded);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t s) {
    visattn_launch();
    if (kind == cudaMemcpyDeviceToDevice) return 0;
    memcpy(to, from, size);
    return unless(s && s == recorded);
}

/* A small one may be a number that the host reads. */
cudaError_t cudaMemsetAsync(void *where, int value, size_t size, cudaStream_t s) {
    visattn_launch();
    if (size < 4096) memset(where, value, size);
    return 0;
}

/* Kernels. */
static void *no_module;
static _Thread_local struct { dim3 grid, block; size_t shared; void *stream; } pushed;

void **__cudaRegisterFatBinary(void *binary) { return &no_module; }
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *f) { *kernel = (cudaKernel_t)f; return 0; }

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
    *(void **)stream = pushed.stream;
    return 0;
}

cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) {
    visattn_launch();
    return 0;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) {
    visattn_launch();
    return 0;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) {
    visattn_launch();
    return 0;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *f) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 64;
    found->binaryVersion = found->ptxVersion = 90;
    return 0;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t m) {
    *n = 2;
    return 0;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b,
                                                                   size_t m, unsigned flags) {
    *n = 2;
    return 0;
}

/* Streams, events and graphs. A graph is one launch. */
cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = handle(); return 0; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = handle(); return 0; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { *s = handle(); return 0; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { *priority = 0; return 0; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = handle(); return 0; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { *e = handle(); return 0; }

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return 0;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    recorded = s;
    return 0;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    recorded = 0, *graph = handle();
    return 0;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = s && s == recorded;
    return 0;
}

cudaError_t cudaStreamGetCaptureInfo(
        cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
        cudaGraph_t *graph, const cudaGraphNode_t **nodes,
#if CUDART_VERSION >= 13000
        const cudaGraphEdgeData **edges,
#endif
        size_t *count) {
    *status = s && s == recorded;
    if (id) *id = 1;
    if (graph) *graph = (cudaGraph_t)&no_module;
    if (count) *count = 0;
    return 0;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags) {
    *e = handle();
    return 0;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g,
                                          unsigned long long flags) {
    *e = handle();
    return 0;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *count) {
    *count = 1;
    return 0;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { visattn_launch(); return 0; }

/* cuBLAS. Heuristics find one algorithm. */
cublasStatus_t cublasCreate_v2(cublasHandle_t *h) { *h = handle(); return 0; }
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t *m) { *m = 0; return 0; }
cublasStatus_t cublasGetMathMode(cublasHandle_t h, cublasMath_t *mode) { *mode = 0; return 0; }
size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }
cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) { *h = handle(); return 0; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t c,
                                        cudaDataType_t t) {
    *d = handle();
    return 0;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *d, cudaDataType t, uint64_t r,
                                          uint64_t c, int64_t stride) {
    *d = handle();
    return 0;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    *p = handle();
    return 0;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
        cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t x,
        cublasLtMatrixLayout_t y, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
        cublasLtMatmulPreference_t p, int wanted, cublasLtMatmulHeuristicResult_t *found, int *count) {
    memset(found, 0, sizeof *found);
    *count = 1;
    return 0;
}

/* cuDNN. Heuristics find one engine. Every attribute is zero. */
size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion(void) { return CUDART_VERSION; }
cudnnStatus_t cudnnCreate(cudnnHandle_t *h) { *h = handle(); return 0; }
const char *cudnnGetErrorString(cudnnStatus_t status) { return "an error without a GPU"; }
void cudnnGetLastErrorString(char *message, size_t size) { if (size) *message = 0; }

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t *d) {
    *d = handle();
    return 0;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t h, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t variants) {
    visattn_launch();
    return 0;
}

cudnnStatus_t cudnnBackendGetAttribute(
        cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
        cudnnBackendAttributeType_t type, int64_t wanted, int64_t *count, void *out) {
    int none = name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE || name == CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE
        || name == CUDNN_ATTR_ENGINE_KNOB_INFO;
    if (count) *count = !none;
    if (out && wanted > 0 && !none && type != CUDNN_TYPE_BACKEND_DESCRIPTOR)
        memset(out, 0, type == CUDNN_TYPE_CHAR ? 1 : type == CUDNN_TYPE_INT64 ? 8 : 4);
    return 0;
}

/* The sizes of what a BatchNorm needs in training. Pointers of all kinds are alike. */
cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
        cudnnHandle_t h, int mode, int ops, void *activation, void *x, size_t *size) {
    *size = 16;
    return 0;
}

cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
        cudnnHandle_t h, int mode, int ops, void *x, void *z, void *y, void *norm, void *activation,
        size_t *size) {
    *size = 16;
    return 0;
}

cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
        cudnnHandle_t h, int mode, int ops, void *x, void *y, void *dy, void *dz, void *dx,
        void *norm, void *activation, size_t *size) {
    *size = 16;
    return 0;
}
