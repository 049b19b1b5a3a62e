// The installed header; pkg-config says where it is.
#include <dollop.h>
