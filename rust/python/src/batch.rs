//! Device side: many chains at once, as columns.

use std::{
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
};

use pyo3::{
    buffer::{Element, PyBuffer},
    exceptions::{PyKeyError, PyTypeError},
    intern,
    prelude::*,
    types::{PyBytes, PyInt, PyIterator, PyList, PyMemoryView, PySlice},
};
use xenvirt_core::ring::{self, BatchError, QueueBatch};

use crate::{
    buffer::{BorrowedBuffer, copying},
    errors::Error,
    file::FileArgument,
    header::{Field, Header},
};

/// Chains that were taken together, or a part of them.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct Batch {
    inner: QueueBatch,
    header: Option<Arc<Header>>,
    /// The columns that were asked for already, by the index of their field.
    columns: Mutex<Vec<(usize, Py<PyAny>)>>,
}

impl Batch {
    /// The Python side of a batch of the core.
    pub fn new(inner: QueueBatch, header: Option<Arc<Header>>) -> Self {
        Self { inner, header, columns: Mutex::default() }
    }

    fn part(&self, inner: QueueBatch) -> Self {
        Self::new(inner, self.header.clone())
    }

    fn field(&self, name: &str) -> PyResult<(usize, &Field)> {
        let fields = self.header.as_ref().map(|header| header.fields.as_slice()).unwrap_or_default();
        fields.iter().enumerate().find(|(_, field)| field.name == name).ok_or_else(|| {
            let names: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
            PyKeyError::new_err(format!("no header field {name:?}; there are: {}", names.join(", ")))
        })
    }

    fn column<'py>(&self, py: Python<'py>, name: &str) -> Result<Bound<'py, PyAny>, Error> {
        let (index, field) = self.field(name)?;
        let columns = || self.columns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, column)) = columns().iter().find(|(other, _)| *other == index) {
            return Ok(column.bind(py).clone());
        }
        let mut bytes = Vec::new();
        self.inner.column(field.offset, field.width, &mut bytes)?;
        let column = typed_view(py, &bytes, &field.letter, field.width)?;
        columns().push((index, column.clone().unbind()));
        Ok(column)
    }

    /// Runs a copy, detached from the interpreter when it is long.
    fn copy(
        &self,
        py: Python<'_>,
        len: u64,
        copy: impl FnOnce(&QueueBatch) -> Result<ring::Mask, BatchError> + Send,
    ) -> Result<Mask, Error> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let mask = copying(py, len, || copy(&self.inner))?;
        Ok(Mask { inner: mask })
    }
}

#[pymethods]
impl Batch {
    fn __len__(&self) -> usize {
        self.inner.len()
    }

    /// The headers, by field.
    #[getter]
    fn header(slf: Py<Self>) -> Columns {
        Columns { batch: slf }
    }

    /// Bytes of data that each request has for the device to read, without the header.
    #[getter]
    fn readable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        lengths(py, self.inner.readable())
    }

    /// Room that each request has for the device to write data, without the trailer.
    #[getter]
    fn writable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        lengths(py, self.inner.writable())
    }

    /// The sum of `readable`.
    #[getter]
    fn total_readable(&self) -> u64 {
        self.inner.total_readable()
    }

    /// Parts in which a header field has the same value.
    fn group_by<'py>(&self, py: Python<'py>, name: &str) -> Result<Bound<'py, PyList>, Error> {
        let (_, field) = self.field(name)?;
        if field.letter.ends_with('s') {
            let text = format!("field {name:?} is of bytes ({}), not a number", field.letter);
            return Err(PyTypeError::new_err(text).into());
        }
        let signed = field.letter.starts_with(|letter: char| letter.is_ascii_lowercase());
        let unused = 64 - 8 * field.width as u32;
        let groups = PyList::empty(py);
        for (value, part) in self.inner.group_by(field.offset, field.width)? {
            let value = if signed {
                PyInt::new(py, (value << unused) as i64 >> unused)
            } else {
                PyInt::new(py, value)
            };
            groups.append((value, self.part(part)))?;
        }
        Ok(groups)
    }

    /// The part for which the mask holds.
    fn select(&self, mask: &Mask) -> Result<Self, Error> {
        Ok(self.part(self.inner.select(&mask.inner)?))
    }

    /// Fills the data of each request from a buffer.
    #[pyo3(signature = (source, offsets, *, unit = 1))]
    fn write_from(
        &self,
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        offsets: &Bound<'_, PyAny>,
        unit: u64,
    ) -> Result<Mask, Error> {
        let source = BorrowedBuffer::readable(source)?;
        let offsets = numbers(py, offsets)?;
        let source = source.source();
        self.copy(py, self.inner.writable().sum(), |batch| batch.write_from(source, &offsets, unit))
    }

    /// Copies the data of each request to a buffer.
    #[pyo3(signature = (target, offsets, *, unit = 1))]
    fn read_into(
        &self,
        py: Python<'_>,
        target: &Bound<'_, PyAny>,
        offsets: &Bound<'_, PyAny>,
        unit: u64,
    ) -> Result<Mask, Error> {
        let mut target = BorrowedBuffer::writable(target)?;
        let offsets = numbers(py, offsets)?;
        let target = target.target()?;
        self.copy(py, self.inner.readable().sum(), |batch| batch.read_into(target, &offsets, unit))
    }

    /// Fills the data of each request from a file, straight into guest memory.
    #[pyo3(signature = (file, offsets, *, unit = 1, limit = None))]
    fn write_from_file(
        &self,
        py: Python<'_>,
        file: FileArgument,
        offsets: &Bound<'_, PyAny>,
        unit: u64,
        limit: Option<u64>,
    ) -> Result<Mask, Error> {
        let offsets = numbers(py, offsets)?;
        self.copy(py, u64::MAX, |batch| batch.write_from_file(file.as_fd(), &offsets, unit, limit))
    }

    /// Moves the data of each request to a file, straight from guest memory.
    #[pyo3(signature = (file, offsets, *, unit = 1, limit = None))]
    fn read_into_file(
        &self,
        py: Python<'_>,
        file: FileArgument,
        offsets: &Bound<'_, PyAny>,
        unit: u64,
        limit: Option<u64>,
    ) -> Result<Mask, Error> {
        let offsets = numbers(py, offsets)?;
        self.copy(py, u64::MAX, |batch| batch.read_into_file(file.as_fd(), &offsets, unit, limit))
    }

    /// Fills the data of each request with zeroes.
    fn write_zeroes(&self, py: Python<'_>) -> Result<(), Error> {
        let len = usize::try_from(self.inner.writable().sum::<u64>()).unwrap_or(usize::MAX);
        Ok(copying(py, len, || self.inner.write_zeroes())?)
    }

    /// Writes the trailer of each request.
    #[pyo3(signature = (value, *, r#where = None, otherwise = 0))]
    fn write_trailer(&self, value: u64, r#where: Option<&Mask>, otherwise: u64) -> Result<(), Error> {
        Ok(self.inner.write_trailer(value, r#where.map(|mask| &mask.inner), otherwise)?)
    }

    /// Gives the chains back to the driver.
    fn complete(&self) -> Result<(), Error> {
        Ok(self.inner.complete()?)
    }

    fn __repr__(&self) -> String {
        format!("<Batch of {} chains of queue {}>", self.inner.len(), self.inner.queue().index())
    }
}

/// The header fields of a batch: a column each.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct Columns {
    batch: Py<Batch>,
}

#[pymethods]
impl Columns {
    fn __getitem__<'py>(&self, py: Python<'py>, name: &str) -> Result<Bound<'py, PyAny>, Error> {
        self.batch.get().column(py, name)
    }

    fn __len__(&self) -> usize {
        self.batch.get().header.as_ref().map_or(0, |header| header.fields.len())
    }

    fn __contains__(&self, name: &str) -> bool {
        self.batch.get().field(name).is_ok()
    }

    /// The names of the fields.
    fn keys(&self) -> Vec<String> {
        let header = self.batch.get().header.as_ref();
        header.map_or(Vec::new(), |header| header.fields.iter().map(|field| field.name.clone()).collect())
    }

    fn __repr__(&self) -> String {
        format!("<Columns {}>", self.keys().join(", "))
    }
}

/// Which requests of a batch something holds for.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct Mask {
    inner: ring::Mask,
}

#[pymethods]
impl Mask {
    #[new]
    fn new(entries: Vec<bool>) -> Self {
        Self { inner: ring::Mask(entries) }
    }

    fn __len__(&self) -> usize {
        self.inner.0.len()
    }

    fn __getitem__(&self, index: isize) -> PyResult<bool> {
        let len = self.inner.0.len();
        let place = if index < 0 { index.checked_add_unsigned(len) } else { Some(index) };
        let entry =
            place.and_then(|place| usize::try_from(place).ok()).and_then(|place| self.inner.0.get(place));
        entry.copied().ok_or_else(|| {
            pyo3::exceptions::PyIndexError::new_err(format!("index {index} of a mask of {len} entries"))
        })
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        PyList::new(py, &self.inner.0)?.try_iter()
    }

    /// True if it holds for every request.
    fn all(&self) -> bool {
        self.inner.0.iter().all(|&entry| entry)
    }

    /// True if it holds for a request.
    fn any(&self) -> bool {
        self.inner.0.iter().any(|&entry| entry)
    }

    /// For how many requests it holds.
    fn count(&self) -> usize {
        self.inner.0.iter().filter(|&&entry| entry).count()
    }

    /// The entries, as a list.
    fn tolist(&self) -> Vec<bool> {
        self.inner.0.clone()
    }

    fn __invert__(&self) -> Self {
        Self { inner: ring::Mask(self.inner.0.iter().map(|&entry| !entry).collect()) }
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| other.get().inner == self.inner)
    }

    fn __repr__(&self) -> String {
        format!("<Mask, {} of {}>", self.count(), self.inner.0.len())
    }
}

/// A read-only memoryview of numbers.
fn typed_view<'py>(py: Python<'py>, bytes: &[u8], letter: &str, width: usize) -> PyResult<Bound<'py, PyAny>> {
    let count = bytes.len() / width;
    // A view of nothing cannot be cast: a view of one entry is, and then cut to none.
    let padded = if count == 0 { PyBytes::new(py, &vec![0; width]) } else { PyBytes::new(py, bytes) };
    let view = PyMemoryView::from(&padded)?;
    let cast = intern!(py, "cast");
    let view = if letter.ends_with('s') {
        view.call_method1(cast, ("B", (count.max(1), width)))?
    } else {
        view.call_method1(cast, (letter,))?
    };
    if count == 0 { view.get_item(PySlice::new(py, 0, 0, 1)) } else { Ok(view) }
}

/// Lengths as a memoryview of 'I'. A length of 2^32 is given as one less.
fn lengths<'py>(py: Python<'py>, lengths: impl Iterator<Item = u64>) -> PyResult<Bound<'py, PyAny>> {
    let bytes: Vec<u8> =
        lengths.flat_map(|len| u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes()).collect();
    typed_view(py, &bytes, "I", 4)
}

/// Whole numbers: from a buffer of any integer format, or from a sequence. A negative one becomes one
/// that lies outside of everything.
fn numbers(py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    fn typed<T: Element>(
        py: Python<'_>,
        object: &Bound<'_, PyAny>,
        number: impl Fn(T) -> u64,
    ) -> PyResult<Option<Vec<u64>>> {
        match PyBuffer::<T>::get(object) {
            Ok(buffer) => Ok(Some(buffer.to_vec(py)?.into_iter().map(number).collect())),
            Err(_) => Ok(None),
        }
    }
    let outside = |number: i64| u64::try_from(number).unwrap_or(u64::MAX);
    if let Some(numbers) = typed(py, object, |number: u64| number)? {
        return Ok(numbers);
    }
    if let Some(numbers) = typed(py, object, outside)? {
        return Ok(numbers);
    }
    if let Some(numbers) = typed(py, object, |number: u32| number.into())? {
        return Ok(numbers);
    }
    if let Some(numbers) = typed(py, object, |number: i32| outside(number.into()))? {
        return Ok(numbers);
    }
    if let Some(numbers) = typed(py, object, |number: u16| number.into())? {
        return Ok(numbers);
    }
    let number = |number: i128| u64::try_from(number).unwrap_or(u64::MAX);
    match object.extract::<Vec<i128>>() {
        Ok(numbers) => Ok(numbers.into_iter().map(number).collect()),
        Err(_) => Err(PyTypeError::new_err(
            "offsets must be a buffer of integers of 16, 32 or 64 bits, or a sequence of int",
        )),
    }
}
