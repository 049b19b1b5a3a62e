// Includes the installed header, which pkg-config finds.
#include <dollop.h>
