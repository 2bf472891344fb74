/*
 * LD_PRELOAD for a daemon whose hardware is not there: a test plays it (hardware.py).
 *
 * $HARDWARE is a folder laid over / for what lies below /dev and /sys: what exists there is opened in place of the
 * real thing. A Unix socket there is connected to, and the program gets the connection: so a test plays an input
 * device. A CAN socket becomes a connection to $HARDWARE/can. The ioctls of I2C, SPI and evdev are sent to
 * $HARDWARE/ioctl as one packet each, and one packet is the answer:
 *
 *     request:  u32 ioctl number, u32 parts; for each part u32 address, u32 flags, u32 length, bytes as they are now
 *     answer:   i32 result (or -errno); for each part that is read: its new bytes, in the same order
 *
 * A part is a message of I2C_RDWR, the tx (flags 0) or rx (flags READ) side of an SPI transfer, or the argument.
 */
#define _GNU_SOURCE
#include <asm/ioctl.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/can.h>
#include <linux/i2c-dev.h>
#include <linux/i2c.h>
#include <linux/spi/spidev.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NEXT(function) ((typeof(&function))dlsym(RTLD_NEXT, #function))
#define READ 1u /* the same as I2C_M_RD */
#define PACKET (128 * 1024)
#define PARTS 128

struct part {
    uint32_t address, flags, length;
    void *bytes;
};

/* Where the folder lies over `path`; `path` itself if it does not. */
static const char *laid_over(const char *path, char over[PATH_MAX])
{
    const char *folder = getenv("HARDWARE");
    if (!folder || (strncmp(path, "/dev/", 5) && strncmp(path, "/sys/", 5)))
        return path;
    snprintf(over, PATH_MAX, "%s%s", folder, path);
    return access(over, F_OK) ? path : over;
}

static int connect_to(const char *path, int flags)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    int fd = NEXT(socket)(AF_UNIX, SOCK_SEQPACKET | flags, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address)) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static int connect_below(const char *name, int flags)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", getenv("HARDWARE"), name);
    return connect_to(path, flags);
}

/* Sends the parts as they are, and puts the answer's bytes into those that are read. */
static int ask(uint32_t request, struct part *parts, uint32_t count)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static int fd = -1;
    static char packet[PACKET];

    pthread_mutex_lock(&mutex);
    int result = -EIO;
    size_t used = 8;
    memcpy(packet, (uint32_t[]){request, count}, 8);
    for (uint32_t i = 0; i < count; i++) {
        if (used + 12 + parts[i].length > PACKET) {
            result = -EMSGSIZE;
            goto out;
        }
        memcpy(packet + used, &parts[i], 12);
        memcpy(packet + used + 12, parts[i].bytes, parts[i].length);
        used += 12 + parts[i].length;
    }
    if (fd < 0)
        fd = connect_below("ioctl", SOCK_CLOEXEC);
    if (fd < 0 || send(fd, packet, used, MSG_NOSIGNAL) != (ssize_t)used)
        goto out;
    ssize_t got = recv(fd, packet, PACKET, 0);
    if (got < 4)
        goto out;
    memcpy(&result, packet, 4);
    size_t taken = 4;
    for (uint32_t i = 0; i < count && result >= 0; i++) {
        if (!(parts[i].flags & READ) || taken + parts[i].length > (size_t)got)
            continue;
        memcpy(parts[i].bytes, packet + taken, parts[i].length);
        taken += parts[i].length;
    }
out:
    pthread_mutex_unlock(&mutex);
    if (result < 0) {
        errno = -result;
        return -1;
    }
    return result;
}

static int ask_i2c(const struct i2c_rdwr_ioctl_data *data)
{
    struct part parts[PARTS];
    if (data->nmsgs > PARTS) {
        errno = EINVAL;
        return -1;
    }
    for (uint32_t i = 0; i < data->nmsgs; i++) {
        const struct i2c_msg *message = &data->msgs[i];
        parts[i] = (struct part){message->addr, message->flags, message->len, message->buf};
    }
    return ask(I2C_RDWR, parts, data->nmsgs);
}

static int ask_spi(uint32_t request, const struct spi_ioc_transfer *transfers)
{
    struct part parts[PARTS];
    uint32_t used = 0, count = _IOC_SIZE(request) / sizeof *transfers;
    for (uint32_t i = 0; i < count && used + 2 <= PARTS; i++) {
        const struct spi_ioc_transfer *one = &transfers[i];
        if (one->tx_buf)
            parts[used++] = (struct part){i, 0, one->len, (void *)(uintptr_t)one->tx_buf};
        if (one->rx_buf)
            parts[used++] = (struct part){i, READ, one->len, (void *)(uintptr_t)one->rx_buf};
    }
    return ask(request, parts, used);
}

int ioctl(int fd, unsigned long number, ...)
{
    va_list list;
    va_start(list, number);
    void *argument = va_arg(list, void *);
    va_end(list);
    uint32_t request = (uint32_t)number;
    if (!getenv("HARDWARE"))
        return NEXT(ioctl)(fd, number, argument);

    if (request == I2C_RDWR)
        return ask_i2c(argument);
    if (request == I2C_FUNCS)
        return ask(request, &(struct part){0, READ, sizeof(unsigned long), argument}, 1);
    if (request >= 0x0700 && request <= 0x0720) /* I2C_SLAVE and its like: the argument is the value */
        return ask(request, &(struct part){(uint32_t)(uintptr_t)argument, 0, 0, NULL}, 1);
    if (_IOC_TYPE(request) == SPI_IOC_MAGIC && _IOC_NR(request) == 0)
        return ask_spi(request, argument);
    if (_IOC_TYPE(request) == SPI_IOC_MAGIC || _IOC_TYPE(request) == 'E') {
        uint32_t flags = _IOC_DIR(request) & _IOC_READ ? READ : 0;
        return ask(request, &(struct part){0, flags, _IOC_SIZE(request), argument}, 1);
    }
    return NEXT(ioctl)(fd, number, argument);
}

static int open_over(const char *path, int flags, mode_t mode, int (*next)(const char *, int, ...))
{
    char over[PATH_MAX];
    struct stat there;
    path = laid_over(path, over);
    if (path == over && !stat(over, &there) && S_ISSOCK(there.st_mode))
        return connect_to(over, (flags & O_NONBLOCK ? SOCK_NONBLOCK : 0) | (flags & O_CLOEXEC ? SOCK_CLOEXEC : 0));
    return next(path, flags, mode);
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = va_arg(list, mode_t);                                                                            \
        va_end(list);                                                                                                  \
        return open_over(path, flags, mode, NEXT(name));                                                               \
    }
OPEN(open)
OPEN(open64)

DIR *opendir(const char *path)
{
    char over[PATH_MAX];
    return NEXT(opendir)(laid_over(path, over));
}

int socket(int domain, int type, int protocol)
{
    if (domain == AF_CAN && getenv("HARDWARE"))
        return connect_below("can", type & (SOCK_CLOEXEC | SOCK_NONBLOCK));
    return NEXT(socket)(domain, type, protocol);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    return address->sa_family == AF_CAN ? 0 : NEXT(bind)(fd, address, length);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    return level >= SOL_CAN_BASE && level < SOL_CAN_BASE + 16 ? 0 : NEXT(setsockopt)(fd, level, name, value, length);
}
