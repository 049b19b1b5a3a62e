//! Readers of calls, form by form.

use super::*;
