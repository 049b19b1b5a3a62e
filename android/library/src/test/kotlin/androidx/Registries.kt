// Stubs for classes that Robolectric refers to and that only Google's repository has. They ignore all reports. This file: a
// test's instrumentation.
package androidx.test.platform.app

import android.app.Instrumentation
import android.os.Bundle

object InstrumentationRegistry {
    @JvmStatic fun registerInstance(instrumentation: Instrumentation?, arguments: Bundle?): Unit = Unit
}
