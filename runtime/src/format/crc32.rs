//! CRC-32 (ISO-HDLC), the checksum of model files.
