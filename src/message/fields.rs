//! A body as its fields, those included that this version does not know: for who hands a message of others on, changed or not.

use serde_json::Value;

use super::codec::{BODY_BYTES_MAX, Encoding, shape, walk, write};
use super::decode::encoding_of;
use super::envelope::Properties;
use super::job::JobMessage;
use super::refusal::Refusal;
use super::walk::Head;
use crate::failure::Failure;

/// Reads a job's body.
///
/// # Errors
/// It is too large, too deep, or not what its content type says.
pub fn read_fields(properties: &Properties, body: &[u8]) -> Result<(Encoding, Value), Refusal> {
    let encoding = encoding_of(properties)?;
    walk(body, encoding, BODY_BYTES_MAX, &mut Head::default())?;
    Ok((encoding, shape(body, encoding)?))
}

/// A job's body in the shape of one, its values not looked at.
///
/// # Errors
/// A field is missing, or of the wrong type.
pub fn read_job(body: &[u8], encoding: Encoding) -> Result<JobMessage, Refusal> {
    shape(body, encoding)
}

/// Writes it. The same fields are the same bytes each time.
///
/// # Errors
/// `internal`: a value that no body can hold.
pub fn write_fields(fields: &Value, encoding: Encoding) -> Result<Vec<u8>, Failure> {
    write(fields, encoding)
}
