// Failures: a status of dollop.h and a message.
import CDollop
import Foundation

/// A failure of the library.
///
/// ``status`` is the kind of failure, which determines what an app can do. ``message`` describes what failed and what would work.
/// A cancelled task throws `CancellationError` instead.
public struct DollopError: Error, Sendable, Hashable {
    /// The kind of a failure. The numbers are those of `dollop.h` and never change their meaning.
    public enum Status: Int32, Sendable, Hashable, CaseIterable {
        /// The operating system reported an error: no such file, no permission, no space, a failed read.
        case io = 1
        /// A file contradicts itself or its format: it is truncated, corrupted or hostile.
        case malformed = 2
        /// A valid file or request that this version cannot run.
        case unsupported = 3
        /// An option or argument is out of range.
        case invalid = 4
        /// The model's chat template does not parse, or rejects the messages.
        case template = 5
        /// The prompt or the conversation does not fit the context.
        case contextFull = 6
        /// The memory budget is too small for this model. The message gives the smallest one that works.
        case budget = 7
        /// The model computes values that are not finite numbers.
        case notFinite = 8
        /// A call that has no partial result was cancelled.
        case cancelled = 9
        /// The GPU is missing, was lost, is out of memory, or rejected a command.
        case device = 10
        /// A failure of a kind that the library has no number for, or that this version does not define.
        case other = 99
        /// A pointer was NULL: a bug in this package.
        case null = 100
        /// A struct's size is unknown: the header is newer than the library.
        case structSize = 101
        /// A text is not UTF-8.
        case utf8 = 102
        /// The engine, chat or session is closed.
        case closed = 103
        /// A handle has the wrong type: a bug in this package.
        case wrongHandle = 104
        /// The chat or session is generating. It runs one generation at a time.
        case busy = 105
        /// A buffer has too few elements: a bug in this package.
        case tooSmall = 106
        /// A callback panicked.
        case callbackPanic = 107
        /// The library panicked, which is a bug. The chat or session of the call is unusable.
        case panic = 108
    }

    /// The kind of failure.
    public let status: Status
    /// One line for display: what failed and what would work.
    public let message: String
}

extension DollopError: CustomStringConvertible, LocalizedError {
    /// The status and the message.
    public var description: String { "\(status): \(message)" }
    /// The message.
    public var errorDescription: String? { message }
}

/// Throws a ``DollopError`` unless `status` is `DOLLOP_OK`. The message is that of this thread's last failure, so no other call may
/// come between. (In C, `dollop_status` is the name of an enum and of an integer; Swift imports the integer.)
func check(_ status: Int32) throws {
    if status == 0 { return }
    let text = dollop_last_error().map { String(cString: $0) } ?? ""
    throw DollopError(status: DollopError.Status(rawValue: status) ?? .other, message: text)
}
