/* A camera without a camera: answers what a program asks of /dev/video0 by Video4Linux.

   gcc -shared -fPIC camera.c -o camera.so; LD_PRELOAD=./camera.so program

   It gives five frames of 64x48 pixels, BGR; the colour of frame n is (20 n, 20 n + 1, 20 n + 2).
   Then it is unplugged: ENODEV. A file in memory has the buffers, so mmap and select are real. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WIDTH = 64, HEIGHT = 48, SIZE = WIDTH * HEIGHT * 3, ROOM = 12288, MOST = 8, FRAMES = 5 };

static int camera = -1, sent, queued[MOST], first, count;

static int opened(const char *path, int flags, mode_t mode) {
    if (strcmp(path, "/dev/video0"))
        return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    camera = memfd_create("camera", 0);
    sent = first = count = 0;
    return ftruncate(camera, ROOM * MOST) ? -1 : camera;
}

#define OPEN(name)                                     \
    int name(const char *path, int flags, ...) {       \
        va_list rest;                                  \
        va_start(rest, flags);                         \
        mode_t mode = va_arg(rest, mode_t);            \
        va_end(rest);                                  \
        return opened(path, flags, mode);              \
    }
OPEN(open)
OPEN(open64)

static int fail(int error) {
    errno = error;
    return -1;
}

static int answer(unsigned long request, void *asked) {
    struct v4l2_format *format = asked;
    struct v4l2_buffer *buffer = asked;
    switch (request) {
    case VIDIOC_QUERYCAP: {
        struct v4l2_capability *can = asked;
        memset(can, 0, sizeof *can);
        can->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    }
    case VIDIOC_G_FMT:
    case VIDIOC_S_FMT:
    case VIDIOC_TRY_FMT:
        format->fmt.pix = (struct v4l2_pix_format){
            .width = WIDTH, .height = HEIGHT, .pixelformat = V4L2_PIX_FMT_BGR24,
            .field = V4L2_FIELD_NONE, .bytesperline = WIDTH * 3, .sizeimage = SIZE};
        return 0;
    case VIDIOC_G_PARM:
    case VIDIOC_S_PARM: {
        struct v4l2_streamparm *parameters = asked;
        parameters->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
        parameters->parm.capture.timeperframe = (struct v4l2_fract){1, 8};
        return 0;
    }
    case VIDIOC_REQBUFS: {
        struct v4l2_requestbuffers *buffers = asked;
        buffers->count = buffers->count < MOST ? buffers->count : MOST;
        return 0;
    }
    case VIDIOC_QUERYBUF:
        buffer->length = SIZE;
        buffer->m.offset = buffer->index * ROOM;
        return 0;
    case VIDIOC_QBUF:
        queued[(first + count++) % MOST] = buffer->index;
        return 0;
    case VIDIOC_DQBUF: {
        char frame[SIZE];
        if (sent == FRAMES)
            return fail(ENODEV);
        if (!count)
            return fail(EAGAIN);
        buffer->index = queued[first];
        buffer->length = SIZE;
        first = (first + 1) % MOST;
        --count;
        for (int i = 0; i < SIZE; ++i)
            frame[i] = 20 * sent + i % 3;
        ++sent;
        buffer->bytesused = pwrite(camera, frame, SIZE, buffer->index * ROOM);
        return 0;
    }
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF:
        return 0;
    }
    return fail(EINVAL);
}

int ioctl(int file, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *asked = va_arg(rest, void *);
    va_end(rest);
    if (camera >= 0 && file == camera)
        return answer(request, asked);
    return syscall(SYS_ioctl, file, request, asked);
}
