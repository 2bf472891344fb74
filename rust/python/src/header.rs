//! The layout of a header, as a class of Python's says it.

use pyo3::{exceptions::PyValueError, intern, prelude::*};

/// A field of a header.
#[derive(Debug)]
pub struct Field {
    /// As Python calls it.
    pub name: String,
    /// As in `struct`: B H I Q, i, 6s.
    pub letter: String,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// Its width in bytes.
    pub width: usize,
}

/// The layout of a header, as its class says it.
#[derive(Debug)]
pub struct Header {
    class: Py<PyAny>,
    /// In the order in which the class has them.
    pub fields: Vec<Field>,
    /// Bytes of the whole header.
    pub size: usize,
}

impl Header {
    /// Asks the class.
    pub fn of(py: Python<'_>, class: &Bound<'_, PyAny>) -> PyResult<Self> {
        let size = class.call_method0(intern!(py, "size"))?.extract()?;
        let mut fields = Vec::new();
        for field in class.call_method0(intern!(py, "fields"))?.try_iter()? {
            let (name, letter, offset): (String, String, usize) = field?.extract()?;
            let width = match letter.as_str() {
                "B" | "b" => 1,
                "H" | "h" => 2,
                "I" | "i" => 4,
                "Q" | "q" => 8,
                other => other.strip_suffix('s').and_then(|count| count.parse().ok()).unwrap_or(0),
            };
            if width == 0 || offset.checked_add(width).is_none_or(|end| end > size) {
                let text = format!(
                    "header field {name:?} ({letter} at byte {offset}) is none of B H I Q b h i q Ns within {size} bytes"
                );
                return Err(PyValueError::new_err(text));
            }
            fields.push(Field { name, letter, offset, width });
        }
        Ok(Self { class: class.clone().unbind(), fields, size })
    }

    /// Is it the layout of this class?
    pub fn is_of(&self, class: &Bound<'_, PyAny>) -> bool {
        self.class.is(class)
    }
}
