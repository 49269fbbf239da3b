//! testssl.sh
