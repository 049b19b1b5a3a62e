// Failures: a status of dollop.h, and a text for people.
import CDollop
import Foundation

/// A call that failed.
///
/// ``status`` says what kind of failure it is and so what an app can do; ``message`` says what happened, and what would work.
/// A cancelled task throws `CancellationError` instead.
public struct DollopError: Error, Sendable, Hashable {
    /// What kind of failure it is. The numbers are those of `dollop.h` and never change their meaning.
    public enum Status: Int32, Sendable, Hashable, CaseIterable {
        /// The operating system refused: no such file, no permission, no space, a read that failed.
        case io = 1
        /// A file contradicts itself or its format: truncated, corrupted or hostile.
        case malformed = 2
        /// A sound file or request that this version cannot run.
        case unsupported = 3
        /// An option or argument is out of its range.
        case invalid = 4
        /// The model's chat template does not parse, or refuses the messages.
        case template = 5
        /// The prompt or the conversation does not fit the context.
        case contextFull = 6
        /// The memory budget cannot work for this model; the message names the smallest that does.
        case budget = 7
        /// The model computes values that are no finite numbers.
        case notFinite = 8
        /// A call with no result to return was cancelled.
        case cancelled = 9
        /// The GPU is missing, was lost, is out of memory or refused a command.
        case device = 10
        /// A failure that has no number yet, or one that this version does not know.
        case other = 99
        /// A pointer was NULL: a bug of this package.
        case null = 100
        /// A struct's size is unknown: the header is newer than the library.
        case structSize = 101
        /// A text is not UTF-8.
        case utf8 = 102
        /// The engine or chat is closed.
        case closed = 103
        /// A handle is one of another type: a bug of this package.
        case wrongHandle = 104
        /// An answer of this chat is being generated; it does one at a time.
        case busy = 105
        /// A buffer has too few elements: a bug of this package.
        case tooSmall = 106
        /// A callback panicked.
        case callbackPanic = 107
        /// A bug in Dollop. The chat of the call is unusable.
        case panic = 108
    }

    /// What kind of failure it is.
    public let status: Status
    /// One line for people.
    public let message: String
}

extension DollopError: CustomStringConvertible, LocalizedError {
    public var description: String { "\(status): \(message)" }
    public var errorDescription: String? { message }
}

/// Throws unless `status` is `DOLLOP_OK`. The text is this thread's last, so no call may come between. (`dollop_status` names an
/// enum and an integer in C; Swift takes the integer.)
func check(_ status: Int32) throws {
    if status == 0 { return }
    let text = dollop_last_error().map { String(cString: $0) } ?? ""
    throw DollopError(status: DollopError.Status(rawValue: status) ?? .other, message: text)
}
