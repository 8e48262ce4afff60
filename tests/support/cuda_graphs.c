/* CUDA graphs for the stand-in device: nothing is recorded, and a launch does nothing. As on a device, waiting for a
   stream that is being captured is an error (900), so that an update that cannot be captured is found. */
#include <stddef.h>
#include <stdlib.h>

static void *capturing;

static int status(void *stream) { return capturing && stream == capturing; }
static int handle(void **out) { *out = malloc(8); return *out ? 0 : 2; }

int cudaStreamBeginCapture(void *stream, int mode) { capturing = stream; return 0; }
int cudaStreamEndCapture(void *stream, void **graph) { capturing = NULL; return handle(graph); }
int cudaStreamIsCapturing(void *stream, int *found) { *found = status(stream); return 0; }
int cudaStreamGetCaptureInfo(void *stream, int *found, unsigned long long *id, void **graph, const void **nodes,
                             const void **edges, size_t *count) {
    *found = status(stream);
    if (id) *id = *found;
    if (graph) *graph = capturing;
    if (nodes) *nodes = NULL;
    if (count) *count = 0;
    return 0;
}
int cudaStreamUpdateCaptureDependencies(void *stream, void *nodes, void *edges, size_t count, unsigned flags) { return 0; }
int cudaStreamSynchronize(void *stream) { return status(stream) ? 900 : 0; }
int cudaDeviceSynchronize(void) { return capturing ? 900 : 0; }
int cudaEventSynchronize(void *event) { return capturing ? 900 : 0; }
int cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) { return handle(executable); }
int cudaGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) { return handle(executable); }
int cudaGraphLaunch(void *executable, void *stream) { return 0; }
int cudaGraphDestroy(void *graph) { return 0; }
int cudaGraphExecDestroy(void *executable) { return 0; }
int cudaGraphGetNodes(void *graph, void *nodes, size_t *count) { *count = 1; return 0; }
